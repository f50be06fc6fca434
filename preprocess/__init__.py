"""DICOM and NIfTI -> Studies. Importing this costs nothing; pydicom and the decoders load with the first study."""

from preprocess.study_source import open_study, segmentation_folder, studies

__all__ = ["open_study", "segmentation_folder", "studies"]
