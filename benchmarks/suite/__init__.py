"""The throughput table: from DICOM to the network's input, beside what people use. `make bench`."""
