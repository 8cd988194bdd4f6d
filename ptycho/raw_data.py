"""The data set under the path that Ptychodus imports."""

from ptycho.data.raw import RawData, peek_pattern_size

__all__ = ["RawData", "peek_pattern_size"]
