"""What a text that uses the patch prior should cite, in BibTeX."""

PATCH = """
@article{yang2025local,
  title = {Local Patches Meet Global Context: Scalable {3D} Diffusion Priors for Computed Tomography Reconstruction},
  author = {Yang, Taewon and Hu, Jason and Fessler, Jeffrey A. and Shen, Liyue},
  journal = {arXiv preprint arXiv:2512.18161},
  year = {2025},
  eprint = {2512.18161},
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
