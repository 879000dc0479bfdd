"""What a text that uses these operators should cite, in BibTeX."""

JOSEPH = """
@article{joseph1982improved,
  title = {An Improved Algorithm for Reprojecting Rays through Pixel Images},
  author = {Joseph, Peter M.},
  journal = {IEEE Transactions on Medical Imaging},
  volume = {1},
  number = {3},
  pages = {192--196},
  year = {1982},
  doi = {10.1109/TMI.1982.4307572}
}
"""
