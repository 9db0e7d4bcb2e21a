"""The package's errors and warnings. All errors are ``ValueError``; the command line turns them into exit code 2."""


class EffnetFastError(ValueError):
    """Something the caller gave cannot be used; the message names what was expected and what came."""


class BackendError(EffnetFastError, RuntimeError):
    """No backend, or not the chosen one, can run an op; the message carries every backend's reason."""


class UnsupportedBlockError(EffnetFastError):
    """A block cannot run fused; the message is the reason."""


class ShardedWeightError(UnsupportedBlockError):
    """A block's weights are in pieces on several processes, as FSDP keeps them outside the forward."""


class CheckpointError(EffnetFastError):
    """A checkpoint cannot be read or does not fit the model."""


class UnknownModelError(EffnetFastError):
    """No model of that name."""


class CheckpointWarning(UserWarning):
    """A checkpoint was understood, but not in the only way; the message says how."""
