"""What a text that uses these priors should cite, in BibTeX."""

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

DIFFUSION_BLEND = """
@inproceedings{song2024diffusionblend,
  title = {{DiffusionBlend}: Learning {3D} Image Prior through Position-aware Diffusion Score Blending for {3D} Computed
           Tomography Reconstruction},
  author = {Song, Bowen and Hu, Jason and Luo, Zhaoxu and Fessler, Jeffrey A. and Shen, Liyue},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {37},
  year = {2024},
  eprint = {2406.10211},
  archivePrefix = {arXiv}
}
"""

EDM = """
@inproceedings{karras2022elucidating,
  title = {Elucidating the Design Space of Diffusion-Based Generative Models},
  author = {Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {35},
  pages = {26565--26577},
  year = {2022},
  eprint = {2206.00364},
  archivePrefix = {arXiv}
}
"""
