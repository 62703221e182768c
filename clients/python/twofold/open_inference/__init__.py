"""
Stubs of the part of the Open Inference Protocol v2 (`inference.GRPCInferenceService`) that Twofold implements.

The default descriptor pool of protobuf accepts each full name once per process. These messages are in a separate pool, so
that tritonclient can be imported in the same process.
"""

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL = DescriptorPool()
"""The descriptor pool of this package."""
