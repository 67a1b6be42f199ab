"""What stands in front of MONAI Label: checks of every request, before MONAI Label sees it.

MONAI Label trusts its clients: it takes ids, tags and file names as parts of paths, answers web pages of any origin,
and accepts files of any kind and size. The guard is an ASGI application around it. It parses each request strictly,
checks every value, and writes the request anew from the checked values, so that no second parser can read it
differently. What is not listed in `routes` is refused.

The package imports the standard library, nibabel and nothing of MONAI Label, so that it is tested without a server.
"""

from samora_guard.hosts import Hosts
from samora_guard.middleware import Guard, Request
from samora_guard.refusal import Refusal

__all__ = ["Guard", "Hosts", "Refusal", "Request"]
