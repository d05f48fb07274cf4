"""What a model costs, in one place: the counts that budgets limit and that tables show.

Convention: 1 MAC = 2 FLOPs; all figures are for one sample (batch 1) in float32 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Source = Literal["measured", "predicted", "published", "unavailable"]


@dataclass(frozen=True)
class Costs:
    """Costs of one model for one sample, without running it.

    `peak_memory_bytes` is the largest sum of live activations plus all weights; `size_bytes` is the weights'
    size on disk. `predicted_ms` and `predicted_mj` are what the model of a target says of latency and energy, where a
    budget limits them there.
    """

    flops: int
    params: int
    peak_memory_bytes: int
    size_bytes: int
    predicted_ms: float | None = None
    predicted_mj: float | None = None

    @property
    def macs(self) -> int:
        return self.flops // 2

    def as_json(self) -> dict[str, Any]:
        """Without predictions where there are none."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {**known, "macs": self.macs}


@dataclass(frozen=True)
class Latency:
    """Latency of one call in milliseconds: median, 10th and 90th percentile, and the number of repeats."""

    median: float
    p10: float
    p90: float
    repeats: int = 0

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "p10": self.p10, "p90": self.p90}


@dataclass(frozen=True)
class LayerProfile:
    """One layer's share of a profile; what is not known is None."""

    name: str
    kind: str
    flops: int | None = None
    bytes_moved: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Profile:
    """What a target says of a model. `source` tells how each figure was come by: a predicted figure is never
    shown as a measured one. `error_pct` is the stated error of a predicted latency, `basis` what predicted it:
    "calibrated" (operators measured here), "published", "soft_core" or "roofline"; `details` are figures that only
    this kind of target has, as JSON."""

    target: str
    backend: str
    source: Source
    latency: Latency | None = None
    flops: int | None = None
    params: int | None = None
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None
    error_pct: float | None = None
    basis: str | None = None
    parity_max_abs: float | None = None
    speedup_against: float | None = None
    reason: str | None = None
    how: str | None = None
    layers: tuple[LayerProfile, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The entry of this target in the JSON document of `benchmark`."""
        return {
            "target": self.target,
            "backend": self.backend,
            "source": self.source,
            "latency_ms": self.latency.as_json() if self.latency else None,
            "repeats": self.latency.repeats or None if self.latency else None,
            "error_pct": self.error_pct,
            "basis": self.basis,
            "flops": self.flops,
            "params": self.params,
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_mj": self.energy_mj,
            "parity": None if self.parity_max_abs is None else {"max_abs": self.parity_max_abs},
            "speedup_against": self.speedup_against,
            "reason": self.reason,
            "how": self.how,
            "layers": [asdict(layer) for layer in self.layers] or None,
            "details": dict(self.details) or None,
        }


def with_ratios(profiles: Mapping[str, Profile], against: str | None) -> dict[str, Profile]:
    """Profiles of several models on one target, with the speed-up that their latencies say over one of them."""
    before = profiles[against].latency if against is not None else None
    return {
        name: replace(profile, speedup_against=before.median / profile.latency.median)
        if before is not None and profile.latency is not None and name != against
        else profile
        for name, profile in profiles.items()
    }
