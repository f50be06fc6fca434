"""Masks that lie beside the bone are refused, those that lie on it or where nothing tells are kept."""

import nibabel
import numpy as np
import pytest
from dicom_files import write_series, write_slice

from preprocess.masks.segmentation import read_segmentation
from preprocess.phantom import write_phantom
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.planning import plan_studies

SIZE, SLICES = 64, 36


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """(plan, its grey values (n, rows, columns), its mask's image) of two phantoms."""
    source = tmp_path_factory.mktemp("moves") / "phantom"
    write_phantom(source, studies=2, slices=56, segmented=2, syntax="explicit", seed=11, workers=1, progress=False)
    found = []
    for plan in plan_studies(source)[0]:
        mask = nibabel.load(source / "segmentations" / f"{plan.id}.nii")
        found.append((plan, DicomPixels(plan).read(0, len(plan.slices)), mask))
    return found


def reasons(path, plan, grey, labels, affine):
    image = nibabel.Nifti1Image(labels, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    boxes, _, findings = read_segmentation(path, plan, lambda z0, z1: grey[z0:z1])
    assert (boxes is None) == any(finding.severity == "refused" for finding in findings)
    return [finding.reason for finding in findings]


def moved(affine, plan, voxels):
    """The affine with its volume moved by voxels (z, y, x) to the feet, the back and the left."""
    moved = affine.copy()
    z, y, x = np.array(voxels) * plan.spacing
    moved[:3, 3] -= x, y, z
    return moved


KEPT = [
    (0, 0, 0),
    (0, 1, 0),
    (0, 0, -1),
    (0, 2, 0),
    (0, -2, 0),
    (0, 0, 2),
    (0, 0, -2),
    (1, 0, 0),
    (2, 0, 0),
    (-2, 0, 0),
]
REFUSED = [(0, 4, 0), (0, -4, 0), (0, 0, 4), (0, 0, -4), (4, 0, 0), (-4, 0, 0), (4, 4, 4), (0, 20, 0), (0, 0, 90)]


@pytest.mark.parametrize("voxels", [*KEPT, (2, 2, 2), (-1, 2, -2)])
def test_a_mask_off_by_two_voxels_at_most_is_kept(phantom, tmp_path, voxels):
    for plan, grey, mask in phantom:
        affine = moved(mask.affine, plan, voxels)
        assert reasons(tmp_path / "a.nii", plan, grey, np.asarray(mask.dataobj), affine) == []


@pytest.mark.parametrize("voxels", REFUSED)
def test_a_mask_off_by_more_is_refused(phantom, tmp_path, voxels):
    for plan, grey, mask in phantom:
        affine = moved(mask.affine, plan, voxels)
        assert reasons(tmp_path / "a.nii", plan, grey, np.asarray(mask.dataobj), affine) == ["segmentation_shifted"]


@pytest.mark.parametrize("levels", [(1,), (2,), (5,), (6, 7)])
def test_a_sound_mask_of_some_levels_only_is_kept(phantom, tmp_path, levels):
    for plan, grey, mask in phantom:
        labels = np.asarray(mask.dataobj)
        labels = np.where(np.isin(labels, levels), labels, 0).astype(np.uint8)
        assert reasons(tmp_path / "a.nii", plan, grey, labels, mask.affine) == []


@pytest.mark.parametrize("every", [(4, 4, 1), (8, 8, 2)])
def test_a_sound_mask_of_coarse_voxels_is_kept(phantom, tmp_path, every):
    for plan, grey, mask in phantom:
        image = nibabel.as_closest_canonical(mask)
        starts = [step // 2 for step in every]
        labels = np.asarray(image.dataobj)[
            tuple(slice(start, None, step) for start, step in zip(starts, every, strict=True))
        ]
        affine = image.affine.copy()
        affine[:3, 3] = (image.affine @ [*starts, 1])[:3]
        affine[:3, :3] *= every
        assert reasons(tmp_path / "a.nii", plan, grey, np.ascontiguousarray(labels), affine) == []


def test_noise_weak_bone_and_metal_refuse_no_sound_mask(phantom, tmp_path):
    noise = np.random.default_rng(0)
    for plan, grey, mask in phantom:
        noisy = np.clip(grey + noise.normal(0, 25, grey.shape), 0, 255).astype(np.uint8)
        weak = np.where(grey > 85, 85 + (grey - 85.0) * 0.15, grey).astype(np.uint8)
        metal = grey.copy()
        metal[: len(metal) // 2, 60:75, 180:330] = 255
        for picture in (noisy, weak, metal):
            assert reasons(tmp_path / "a.nii", plan, picture, np.asarray(mask.dataobj), mask.affine) == []


def ring(x=31.5, y=36.0):
    """Labels (SLICES, SIZE, SIZE): five slices a level of the same ellipse."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = ((columns - x) / 7) ** 2 + ((rows - y) / 6) ** 2 < 1
    return np.stack([inside * (1 + z * 7 // SLICES) for z in range(SLICES)]).astype(np.uint8)


def plan_of(folder, hu):
    for z in range(SLICES):
        write_slice(folder / f"{z + 1}.dcm", hu[z].astype(np.int16), z=float(SLICES - z), number=z + 1)
    return plan_studies(folder)[0][0]


def ring_affine():
    affine = np.diag([-0.5, -0.5, -1.0, 1.0])
    affine[:3, 3] = 8.0, 6.0, SLICES
    return affine


def test_a_shift_is_seen_on_a_neck_that_is_its_own_mirror_image(tmp_path):
    plan = plan_of(tmp_path / "dicom", np.where(ring() > 0, 700, 40))
    grey = DicomPixels(plan).read(0, SLICES)
    labels = ring().transpose(2, 1, 0)
    for voxels, expected in (((0, 0, 0), []), ((0, 8, 0), ["segmentation_shifted"])):
        affine = moved(ring_affine(), plan, voxels)
        assert reasons(tmp_path / "a.nii", plan, grey, labels, affine) == expected


def test_what_the_bone_does_not_tell_is_no_fault(tmp_path):
    """Bone that is the same in every slice tells nothing of head and feet, soft tissue nothing at all."""
    same = plan_of(tmp_path / "same", np.where(ring() > 0, 700, 40))
    labels = ring()
    labels[:8] = labels[-8:] = 0
    labels = labels.transpose(2, 1, 0)
    grey = DicomPixels(same).read(0, SLICES)
    assert reasons(tmp_path / "a.nii", same, grey, labels, moved(ring_affine(), same, (6, 0, 0))) == []
    noise = np.random.default_rng(1).normal(40, 40, ring().shape)
    soft = plan_of(tmp_path / "soft", noise)
    grey = DicomPixels(soft).read(0, SLICES)
    found = reasons(tmp_path / "a.nii", soft, grey, labels, moved(ring_affine(), soft, (0, 6, 0)))
    assert "segmentation_shifted" not in found


def test_a_single_slice_is_checked_in_its_plane(tmp_path):
    plan = plan_studies(write_series(tmp_path / "dicom", 1))[0][0]
    grey = np.full((1, plan.rows, plan.columns), 80, np.uint8)
    labels = np.zeros((plan.rows, plan.columns), np.uint8)
    labels[8:16, 10:22] = 3
    grey[0][labels > 0] = 180
    affine = np.diag([-0.5, -0.5, -1.0, 1.0])
    affine[:3, 3] = 8, 6, plan.z[0]
    volume = labels.T[:, :, None]
    assert reasons(tmp_path / "a.nii", plan, grey, volume, affine) == []
    assert reasons(tmp_path / "a.nii", plan, np.roll(grey, 5, 1), volume, affine) != []
