"""This project and what people use instead: names, environments, and what each of them lacks. Needs the standard library only."""

from dataclasses import dataclass, field

ROWS = ("prepare", "bytes", "difference", "window", "triplet", "loader", "first")


@dataclass(frozen=True)
class Chosen:
    """One way, as the parent and `serve` know it."""

    name: str
    """as users read it"""
    environment: str
    """its folder in work/peers, and its file in requirements/; "" for the project's own"""
    module: str
    holds: str
    """the class in the module"""
    note: str = ""
    """what differs from the others"""
    lacks: dict[str, str] = field(default_factory=dict)
    """the reason, by row"""


WAYS = {
    "cspine": Chosen("cspine", "", "cspine_ways", "Cspine"),
    "monai-persistent": Chosen(
        "MONAI PersistentDataset",
        "monai",
        "monai_ways",
        "Persistent",
        "own image step (ScaleIntensity, Resample, NormalizeIntensity on tensors); loads a whole study for each item",
    ),
    "monai-cache": Chosen(
        "MONAI CacheDataset",
        "monai",
        "monai_ways",
        "Cached",
        "own image step, as PersistentDataset; all studies in memory, decoded anew by each process that starts",
        {"bytes": "in memory only"},
    ),
    "torchio": Chosen(
        "TorchIO SubjectsLoader",
        "torchio",
        "torchio_ways",
        "TorchIO",
        "own image step (Crop, Lambda, Resample): no grid distortion, and border pixels are continued half a pixel; "
        "uint8 NIfTI without compression, of which a reader of ours maps the item's slices alone",
    ),
    "nnunet": Chosen(
        "nnU-Net blosc2",
        "nnunet",
        "nnunet_ways",
        "NnUnet",
        "uint8 where nnU-Net keeps float32; its own chunks, for a patch of 96 whole slices; loads by batchgenerators",
    ),
    "litdata": Chosen(
        "LitData",
        "litdata",
        "litdata_ways",
        "LitData",
        "TemporalArrayLoader and read_window, not compressed; windows are no part of its streaming, so PyTorch's DataLoader",
    ),
    "webdataset": Chosen(
        "WebDataset",
        "webdataset",
        "webdataset_ways",
        "WebDataset",
        "streams whole studies in stored order, and each item is made when its study passes",
    ),
    "zarr": Chosen("zarr-python", "zarr", "zarr_ways", "ZarrPython", "8 slices a chunk, zstd as by default"),
    "zarrs": Chosen(
        "zarr-python with zarrs",
        "zarr",
        "zarr_ways",
        "Zarrs",
        "the same arrays by the codec pipeline in Rust; its loader's processes are spawned",
    ),
    "png": Chosen("PNG per slice", "files", "files_ways", "Png", "OpenCV's compression as by default"),
    "npy": Chosen(".npy memory maps", "files", "files_ways", "Npy", "not compressed"),
    "reference": Chosen(
        "the reference's way",
        "",
        "reference_ways",
        "Reference",
        "decodes DICOM files for each item; albumentations with random numbers of its own",
        dict.fromkeys(("prepare", "bytes"), "it keeps nothing") | {"difference": "other random numbers"},
    ),
}
"""by the name that `serve` takes"""
