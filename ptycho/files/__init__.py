"""Scan files of other programs: HDF5 of Ptychodus, CXI and NeXus in; products and CXI out."""
