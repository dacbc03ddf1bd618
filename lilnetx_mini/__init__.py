"""LilNetX-mini: neural-network compression that you can read, run and trust.

The modules of this level need NumPy and Numba alone and are meant to be read in this order:

    latent     rounding, the decoder psi, kernel slices
    density    a learned probability for every integer
    rate       how many bits an array of integers costs
    prior      norms that make whole slices vanish
    frequency  probabilities as integer tables
    rans       from tables to bytes and back
    context    adaptive probabilities: fewer bytes for trained latents
    streams    a group's latents as streams, whichever coder is smaller
    graph      what a network computes, as a list of operations
    model      what a file holds, as plain data
    lnx        the file
    conv       convolutions on arrays
    simplify   channels that have no effect, taken out of a graph
    sparse     convolution kernels that skip zeros
    execute    the instructions of a planned network
    plan       from a graph to instructions: where every value lies, what is fused
    runtime    running a decoded network
    bench      timing it against other engines

``lilnetx_mini.nn`` holds the same ideas for torch, and is imported only when you ask for it.
"""

from .errors import ExportError, InputError, LilnetxError, LnxError

__version__ = "0.1.0"
__all__ = ["ExportError", "InputError", "LilnetxError", "LnxError", "__version__"]
