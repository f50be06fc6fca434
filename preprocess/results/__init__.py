"""What was found in a study, as DICOM files that an archive (PACS) files beside its images: key slices and a report."""
