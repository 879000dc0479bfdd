"""What a text that uses the whole-volume prior should cite, in BibTeX."""

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
