"""The operations of networks, in forms that are fast for each client.

XLA compiles some operations badly where this package needs them: inside loops
over clients on CPU, and under vmap on accelerators. `faster` traces a function,
such as the gradient of any network, and exchanges these operations. So it does
not matter with which library a network is written.
"""

from agsfl.training.fast.rules import faster

__all__ = ["faster"]
