"""Synthetic cervical spine CT in the RSNA layout, with known truth."""

from preprocess.phantom.generate import write_phantom
from preprocess.phantom.study import PhantomStudy, make_phantom_study

__all__ = ["PhantomStudy", "make_phantom_study", "write_phantom"]
