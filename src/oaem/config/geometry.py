"""Codebook geometry: how many codebooks, of what size, over groups of how many weights (section 3.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(?P<bpp>[0-9.]+)bpp-(?P<m>[0-9]+)x(?P<bits>[0-9]+)g(?P<g>[0-9]+)")


@dataclass(frozen=True, order=True)
class Geometry:
    """M codebooks of K = 2**nbits entries, each entry covering `group_size` weights along the input axis."""

    num_codebooks: int
    nbits: int
    group_size: int

    @property
    def codebook_size(self) -> int:
        """K, the entries of one codebook."""
        return 2**self.nbits

    @property
    def bits_per_parameter(self) -> float:
        """The nominal rate: code bits alone, without codebooks and row scales."""
        return self.num_codebooks * self.nbits / self.group_size

    @property
    def name(self) -> str:
        """The name used in results paths, for example `2bpp-2x8g8`."""
        return f"{self.bits_per_parameter:.4g}bpp-{self.num_codebooks}x{self.nbits}g{self.group_size}"

    @classmethod
    def parse(cls, name: str) -> Geometry:
        """The geometry that `name` spells; ValueError if it is not such a name."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"not a geometry name: {name!r} (expected something like 2bpp-2x8g8)")
        geometry = cls(int(match["m"]), int(match["bits"]), int(match["g"]))
        if geometry.name != name:
            raise ValueError(f"{name!r} contradicts itself: {geometry.name} is what its numbers say")
        return geometry

    def groups(self, out_features: int, in_features: int) -> int:
        """N, the weight groups of a [out, in] layer."""
        return out_features * in_features // self.group_size

    def rho(self, out_features: int, in_features: int) -> float:
        """Representational ratio N / K**M (Definition 1.1): below 1 overcomplete, above 1 undercomplete."""
        return self.groups(out_features, in_features) / self.codebook_size**self.num_codebooks

    def true_bits(self, out_features: int, in_features: int) -> float:
        """Bits a parameter with codebooks and row scales (16 bit each) counted in."""
        stored = 16 * (self.num_codebooks * self.codebook_size * self.group_size + out_features)
        return self.bits_per_parameter + stored / (out_features * in_features)
