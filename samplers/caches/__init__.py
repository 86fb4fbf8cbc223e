"""Caches: which positions a forward computes, the others' keys and values being kept. One method a file."""

from dlm_samplers.caches.base import Cache
from dlm_samplers.caches.block import BlockCache
from dlm_samplers.caches.delayed import DelayedCache
from dlm_samplers.caches.dual import DualCache
from dlm_samplers.caches.feature import FeatureCache
from dlm_samplers.caches.prefix import PrefixCache
from dlm_samplers.caches.sparse import SparseCache
from dlm_samplers.caches.suffix_window import SuffixWindow

__all__ = [
    "BlockCache",
    "Cache",
    "DelayedCache",
    "DualCache",
    "FeatureCache",
    "PrefixCache",
    "SparseCache",
    "SuffixWindow",
]
