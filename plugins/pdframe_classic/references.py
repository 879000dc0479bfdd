"""What a text that uses these solvers should cite, in BibTeX."""

FDK = """
@article{feldkamp1984practical,
  title = {Practical Cone-Beam Algorithm},
  author = {Feldkamp, Lee A. and Davis, Lloyd C. and Kress, James W.},
  journal = {Journal of the Optical Society of America A},
  volume = {1},
  number = {6},
  pages = {612--619},
  year = {1984},
  doi = {10.1364/JOSAA.1.000612}
}
"""

KAK_SLANEY = """
@book{kak1988principles,
  title = {Principles of Computerized Tomographic Imaging},
  author = {Kak, Avinash C. and Slaney, Malcolm},
  publisher = {IEEE Press},
  year = {1988},
  doi = {10.1137/1.9780898719277}
}
"""

CONJUGATE_GRADIENTS = """
@article{hestenes1952methods,
  title = {Methods of Conjugate Gradients for Solving Linear Systems},
  author = {Hestenes, Magnus R. and Stiefel, Eduard},
  journal = {Journal of Research of the National Bureau of Standards},
  volume = {49},
  number = {6},
  pages = {409--436},
  year = {1952},
  doi = {10.6028/jres.049.044}
}
"""

FAST_PROJECTION = """
@article{beck2009fast,
  title = {Fast Gradient-Based Algorithms for Constrained Total Variation Image Denoising and Deblurring Problems},
  author = {Beck, Amir and Teboulle, Marc},
  journal = {IEEE Transactions on Image Processing},
  volume = {18},
  number = {11},
  pages = {2419--2434},
  year = {2009},
  doi = {10.1109/TIP.2009.2028250}
}
"""

TV = """
@article{rudin1992nonlinear,
  title = {Nonlinear Total Variation Based Noise Removal Algorithms},
  author = {Rudin, Leonid I. and Osher, Stanley and Fatemi, Emad},
  journal = {Physica D: Nonlinear Phenomena},
  volume = {60},
  number = {1--4},
  pages = {259--268},
  year = {1992},
  doi = {10.1016/0167-2789(92)90242-F}
}

@article{sidky2008image,
  title = {Image Reconstruction in Circular Cone-Beam Computed Tomography by Constrained, Total-Variation Minimization},
  author = {Sidky, Emil Y. and Pan, Xiaochuan},
  journal = {Physics in Medicine and Biology},
  volume = {53},
  number = {17},
  pages = {4777--4807},
  year = {2008},
  doi = {10.1088/0031-9155/53/17/021}
}
"""

ADMM = """
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

@article{ramani2012splitting,
  title = {A Splitting-Based Iterative Algorithm for Accelerated Statistical {X-Ray} {CT} Reconstruction},
  author = {Ramani, Sathish and Fessler, Jeffrey A.},
  journal = {IEEE Transactions on Medical Imaging},
  volume = {31},
  number = {3},
  pages = {677--688},
  year = {2012},
  doi = {10.1109/TMI.2011.2175233}
}
"""

SIRT = """
@article{gregor2008computational,
  title = {Computational Analysis and Improvement of {SIRT}},
  author = {Gregor, Jens and Benson, Thomas},
  journal = {IEEE Transactions on Medical Imaging},
  volume = {27},
  number = {7},
  pages = {918--924},
  year = {2008},
  doi = {10.1109/TMI.2008.923696}
}
"""

PRIMAL_DUAL = """
@article{chambolle2011first,
  title = {A First-Order Primal-Dual Algorithm for Convex Problems with Applications to Imaging},
  author = {Chambolle, Antonin and Pock, Thomas},
  journal = {Journal of Mathematical Imaging and Vision},
  volume = {40},
  number = {1},
  pages = {120--145},
  year = {2011},
  doi = {10.1007/s10851-010-0251-1}
}

@inproceedings{pock2011diagonal,
  title = {Diagonal Preconditioning for First Order Primal-Dual Algorithms in Convex Optimization},
  author = {Pock, Thomas and Chambolle, Antonin},
  booktitle = {International Conference on Computer Vision},
  pages = {1762--1769},
  year = {2011},
  doi = {10.1109/ICCV.2011.6126441}
}
"""

TIKHONOV = """
@book{hansen2010discrete,
  title = {Discrete Inverse Problems: Insight and Algorithms},
  author = {Hansen, Per Christian},
  publisher = {SIAM},
  year = {2010},
  doi = {10.1137/1.9780898718836}
}

@article{fessler1999conjugate,
  title = {Conjugate-Gradient Preconditioning Methods for Shift-Variant {PET} Image Reconstruction},
  author = {Fessler, Jeffrey A. and Booth, Scott D.},
  journal = {IEEE Transactions on Image Processing},
  volume = {8},
  number = {5},
  pages = {688--699},
  year = {1999},
  doi = {10.1109/83.760336}
}
"""
