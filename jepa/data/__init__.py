"""Datasets, transforms and batches."""

from jepa.data.audio import Audio
from jepa.data.augment import two_views
from jepa.data.base import DataError, SampleDataset, fingerprint_of
from jepa.data.batches import Batches, collate, loader
from jepa.data.bouncing_sounds import BouncingSounds
from jepa.data.clip_transforms import RandomErasing, clip_random_resized_crop, side_crops
from jepa.data.digits import Digits
from jepa.data.films import Films
from jepa.data.images import Images
from jepa.data.joint import JointInputs, each_modality, keep_modalities
from jepa.data.logmel import LogMel
from jepa.data.mixture import Mixture
from jepa.data.moving_shapes import MovingShapes
from jepa.data.normalize import Normalize
from jepa.data.shapes import Shapes
from jepa.data.stills import stills
from jepa.data.tones import Tones
from jepa.data.transforms import center_crop, random_resized_crop
from jepa.data.videos import Videos
from jepa.data.views import Saccades, Views

__all__ = [
    "Audio",
    "Batches",
    "BouncingSounds",
    "DataError",
    "Digits",
    "Films",
    "Images",
    "JointInputs",
    "LogMel",
    "Mixture",
    "MovingShapes",
    "Normalize",
    "RandomErasing",
    "Saccades",
    "SampleDataset",
    "Shapes",
    "Tones",
    "Videos",
    "Views",
    "center_crop",
    "clip_random_resized_crop",
    "collate",
    "each_modality",
    "fingerprint_of",
    "keep_modalities",
    "loader",
    "random_resized_crop",
    "side_crops",
    "stills",
    "two_views",
]
