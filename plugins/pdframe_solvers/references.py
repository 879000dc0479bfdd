"""What a text that uses these solvers should cite, in BibTeX."""

DDS = """
@inproceedings{chung2024decomposed,
  title = {Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems},
  author = {Chung, Hyungjin and Lee, Suhyeon and Ye, Jong Chul},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year = {2024},
  url = {https://openreview.net/forum?id=DsEhqQtfAG},
  eprint = {2303.05754},
  archivePrefix = {arXiv}
}
"""

DIFFUSION_MBIR = """
@inproceedings{chung2023solving,
  title = {Solving {3D} Inverse Problems Using Pre-Trained {2D} Diffusion Models},
  author = {Chung, Hyungjin and Ryu, Dohoon and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages = {22542--22551},
  year = {2023},
  eprint = {2211.10655},
  archivePrefix = {arXiv}
}
"""

DPS = """
@inproceedings{chung2023diffusion,
  title = {Diffusion Posterior Sampling for General Noisy Inverse Problems},
  author = {Chung, Hyungjin and Kim, Jeongsol and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul},
  booktitle = {The Eleventh International Conference on Learning Representations},
  year = {2023},
  eprint = {2209.14687},
  archivePrefix = {arXiv}
}
"""

PLUG_AND_PLAY = """
@inproceedings{venkatakrishnan2013plug,
  title = {Plug-and-Play Priors for Model Based Reconstruction},
  author = {Venkatakrishnan, Singanallur V. and Bouman, Charles A. and Wohlberg, Brendt},
  booktitle = {IEEE Global Conference on Signal and Information Processing},
  pages = {945--948},
  year = {2013},
  doi = {10.1109/GlobalSIP.2013.6737048}
}

@article{zhang2022plug,
  title = {Plug-and-Play Image Restoration with Deep Denoiser Prior},
  author = {Zhang, Kai and Li, Yawei and Zuo, Wangmeng and Zhang, Lei and Van Gool, Luc and Timofte, Radu},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume = {44},
  number = {10},
  pages = {6360--6376},
  year = {2022},
  eprint = {2008.13751},
  archivePrefix = {arXiv}
}

@article{boyd2011distributed,
  title = {Distributed Optimization and Statistical Learning via the Alternating Direction Method of Multipliers},
  author = {Boyd, Stephen and Parikh, Neal and Chu, Eric and Peleato, Borja and Eckstein, Jonathan},
  journal = {Foundations and Trends in Machine Learning},
  volume = {3},
  number = {1},
  pages = {1--122},
  year = {2011},
  doi = {10.1561/2200000016}
}
"""

DIFFPIR = """
@inproceedings{zhu2023denoising,
  title = {Denoising Diffusion Models for Plug-and-Play Image Restoration},
  author = {Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu and
            Van Gool, Luc},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  pages = {1219--1229},
  year = {2023},
  eprint = {2305.08995},
  archivePrefix = {arXiv}
}
"""

RED_DIFF = """
@inproceedings{mardani2024variational,
  title = {A Variational Perspective on Solving Inverse Problems with Diffusion Models},
  author = {Mardani, Morteza and Song, Jiaming and Kautz, Jan and Vahdat, Arash},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year = {2024},
  eprint = {2305.04391},
  archivePrefix = {arXiv}
}
"""

DAPS = """
@inproceedings{zhang2025improving,
  title = {Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing},
  author = {Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, Anima and Song, Yang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2025},
  eprint = {2407.01521},
  archivePrefix = {arXiv}
}
"""
