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
