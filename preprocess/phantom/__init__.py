"""Synthetic cervical spine CT in the RSNA layout, with known truth."""

from preprocess.phantom.generate import write_phantom
from preprocess.phantom.study import PhantomStudy, make_study

__all__ = ["PhantomStudy", "make_study", "write_phantom"]
