"""Another bundle for a service that runs, without a request that fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from penchant.artifacts import Manifest
from penchant.config import validate_settings
from penchant.errors import ConfigError, TrainingError
from penchant.runtime.cluster import start_ray
from penchant.runtime.serving.application import build
from penchant.runtime.serving.config import CanarySettings, ServiceSettings
from penchant.runtime.serving.engine import ScoringEngine
from penchant.runtime.serving.running import SERVICE_NAME
from penchant.scoring.model import PersonalisedRewardModel
from penchant.storage import Location, absolute, local_copy


@dataclass(frozen=True)
class Rolled:
    """What a roll changed: what to give it to undo it is in `before`."""

    before: ServiceSettings
    after: ServiceSettings


def roll(bundle: Location | None = None, *, canary_share: float | None = None, address: str = "auto") -> Rolled:
    """Rolls a bundle into the service that runs on a Ray cluster; returns once new replicas answer and old ones have stopped.

    The bundle passes its self-test here before anything is touched, and once more on every replica before it answers. Whatever
    fails, the service is as it was before.

    Args:
        bundle: The new bundle's folder, as the cluster's nodes see it, or its URI; None to end a canary. If it is served already,
            it is loaded anew.
        canary_share: Give it to this share of the users alone, beside the present bundle.
        address: The cluster's; `auto` finds the one on this machine.

    Raises:
        ArtifactError: The bundle is damaged or fails its self-test.
        ConfigError: There is no canary to end.
        TrainingError: No service runs there, or new replicas did not start.
    """
    if bundle is not None:
        _self_test(bundle)
    start_ray(address)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    before = _running_settings(address)
    after = before.model_copy(update=_changes(before, bundle, canary_share))
    _deploy(after, before)
    return Rolled(before, after)


def _changes(before: ServiceSettings, bundle: Location | None, canary_share: float | None) -> dict[str, Any]:
    """Settings that a roll changes."""
    if bundle is None:
        if before.canary is None:
            raise ConfigError("There is no canary to end.", where=f"bundle {before.bundle}", fix="Give --bundle.")
        return {"canary": None}
    folder = absolute(bundle)
    if canary_share is None:
        return {"bundle": folder, "canary": None}
    return {"canary": CanarySettings(bundle=folder, share=canary_share)}


def _self_test(bundle: Location) -> None:
    folder = local_copy(bundle)
    Manifest.read(folder, verify=True)
    ScoringEngine(PersonalisedRewardModel.load(folder)).check()


def _running_settings(address: str) -> ServiceSettings:
    try:
        values: dict[str, Any] = serve.get_app_handle(SERVICE_NAME).settings.remote().result(timeout_s=30)
    except (RayServeException, RayError, TimeoutError) as error:
        raise TrainingError(
            f"No service answers there ({type(error).__name__}).", where=f"--address {address}", fix="Start it: penchant serve."
        ) from None
    return validate_settings(ServiceSettings, values)


def _deploy(after: ServiceSettings, before: ServiceSettings) -> None:
    try:
        serve.run(build(after), name=SERVICE_NAME, route_prefix="/")
    except RuntimeError as error:
        # Old replicas have answered all the while; now Serve wants them again, and not the new ones.
        serve.run(build(before), name=SERVICE_NAME, route_prefix="/")
        raise TrainingError(
            "New replicas did not start; the service is as it was before.",
            where="penchant roll",
            fix="Look into the replicas' log under /tmp/ray/session_latest/logs/serve.",
        ) from error
