"""What a text that uses these data and metrics should cite, in BibTeX."""

LIDC = """
@misc{armato2015data,
  title = {Data From {LIDC-IDRI}},
  author = {Armato III, Samuel G. and McLennan, Geoffrey and Bidaut, Luc and McNitt-Gray, Michael F. and
    Meyer, Charles R. and Reeves, Anthony P. and others},
  howpublished = {The Cancer Imaging Archive},
  year = {2015},
  doi = {10.7937/K9/TCIA.2015.LO9QL9SX}
}

@article{armato2011lung,
  title = {The {Lung Image Database Consortium (LIDC)} and {Image Database Resource Initiative (IDRI)}: A Completed
    Reference Database of Lung Nodules on {CT} Scans},
  author = {Armato III, Samuel G. and McLennan, Geoffrey and Bidaut, Luc and others},
  journal = {Medical Physics},
  volume = {38},
  number = {2},
  pages = {915--931},
  year = {2011},
  doi = {10.1118/1.3528204}
}

@article{clark2013cancer,
  title = {The {Cancer Imaging Archive (TCIA)}: Maintaining and Operating a Public Information Repository},
  author = {Clark, Kenneth and Vendt, Bruce and Smith, Kirk and others},
  journal = {Journal of Digital Imaging},
  volume = {26},
  number = {6},
  pages = {1045--1057},
  year = {2013},
  doi = {10.1007/s10278-013-9622-7}
}
"""

SHEPP_LOGAN = """
@article{shepp1974fourier,
  title = {The {Fourier} Reconstruction of a Head Section},
  author = {Shepp, Lawrence A. and Logan, Benjamin F.},
  journal = {IEEE Transactions on Nuclear Science},
  volume = {21},
  number = {3},
  pages = {21--43},
  year = {1974},
  doi = {10.1109/TNS.1974.6499235}
}
"""

SSIM = """
@article{wang2004image,
  title = {Image Quality Assessment: From Error Visibility to Structural Similarity},
  author = {Wang, Zhou and Bovik, Alan C. and Sheikh, Hamid R. and Simoncelli, Eero P.},
  journal = {IEEE Transactions on Image Processing},
  volume = {13},
  number = {4},
  pages = {600--612},
  year = {2004},
  doi = {10.1109/TIP.2003.819861}
}
"""
