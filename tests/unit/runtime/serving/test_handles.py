"""What becomes of Ray Serve's errors, and of those below it, on their way to a client."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from penchant.errors import ArtifactError
from penchant.runtime.serving.handles import ScorerHandle
from penchant.runtime.serving.service import Busy, Unavailable

TOO_LONG = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "a secret text")


def failing(error):
    async def remote():
        raise error

    return ScorerHandle(SimpleNamespace(describe=SimpleNamespace(remote=remote)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TOO_LONG, Unavailable),
        (DeploymentUnavailableError(None), Unavailable),
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), Busy),
        (ArtifactError("It is damaged."), ArtifactError),
    ],
)
def test_an_error_is_told_in_the_houses_words(error, kind):
    with pytest.raises(kind) as raised:
        asyncio.run(failing(error).describe())
    assert "secret" not in str(raised.value)
