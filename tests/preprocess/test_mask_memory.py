"""A mask of hundreds of megabytes on workers that have not many more."""

import gzip

import nibabel
import numpy as np
import pytest
from dicom_files import COLUMNS, FIRST, ROWS, SPACING
from distributed import LocalCluster
from tiny_rsna import HEIGHTS, PREFIX, SLICES, labels_of, write_study

from cache_schema import Cache
from preprocess.build.build_cache import build_cache


def write_big_mask(path, labels, shape, packed):
    """float64, with `labels` (SLICES, ROWS, COLUMNS) in the middle, and placed so that these lie on the study."""
    starts = [(whole - part) // 2 for whole, part in zip(shape, (COLUMNS, ROWS, SLICES), strict=True)]
    affine = np.diag([-SPACING[1], -SPACING[0], HEIGHTS[1] - HEIGHTS[0], 1.0])
    affine[:3, 3] = np.array([-FIRST[0], -FIRST[1], HEIGHTS[0]]) - affine[:3, :3] @ starts
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float64)
    header.set_sform(affine, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wb", compresslevel=1) if packed else open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        for k in range(shape[2]):
            plane = np.zeros((shape[1], shape[0]), "<f8")
            if 0 <= k - starts[2] < SLICES:
                plane[starts[1] : starts[1] + ROWS, starts[0] : starts[0] + COLUMNS] = labels[k - starts[2]]
            file.write(plane.tobytes())


@pytest.mark.check
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_mask_of_629_megabytes_is_used_on_workers_of_600(tmp_path, suffix):
    source = tmp_path / "source"
    write_study(source, 1)
    path = source / "segmentations" / f"{PREFIX}.1{suffix}"
    write_big_mask(path, labels_of(1), (512, 512, 300), packed=suffix == ".nii.gz")
    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="600MB", **local) as cluster:
        result = build_cache(source, tmp_path / "cache", scheduler=cluster.scheduler_address, tell=lambda line: None)
    assert result.exit_status == 0 and result.studies == 1
    study = Cache(tmp_path / "cache").study(f"{PREFIX}.1")
    assert study.slice_box[2].tolist() == [5, 3, 13, 9] and study.vertebra_ratio[2, 0] == 1
