"""Draws one picture: how far each model is from the truth, as bars on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

WIDTH, LEFT, RIGHT, TOP, ROW = 760, 190, 110, 64, 38
COLOURS = {"base": "#9aa0a6", "PEFT": "#c5392f", "Suture": "#2a7f62"}


def kl_chart(kl: Mapping[str, float], title: str) -> str:
    """An SVG picture of mean KL in nats by model; the axis spans the powers of ten around the values."""
    shown = {name: max(value, 1e-16) for name, value in kl.items()}
    low = math.floor(math.log10(min(shown.values()))) - 1
    high = math.ceil(math.log10(max(shown.values())))
    bottom = TOP + ROW * len(shown)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 48}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{bottom + 48}" fill="white"/>',
        f'<text x="20" y="32" font-size="17" font-weight="bold">{escape(title)}</text>',
    ]
    step = math.ceil((high - low) / 8)
    for power in range(high, low - 1, -step):
        at = x(10.0**power)
        lines.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{at:.1f}" y="{bottom + 16}" font-size="12" text-anchor="middle">1e{power}</text>')
    for row, (name, value) in enumerate(shown.items()):
        y = TOP + ROW * row
        colour = next((c for start, c in COLOURS.items() if name.startswith(start)), "#555")
        lines.append(f'<text x="{LEFT - 12}" y="{y + 18}" font-size="14" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect x="{LEFT}" y="{y}" width="{x(value) - LEFT:.1f}" height="26" fill="{colour}"/>')
        lines.append(f'<text x="{x(value) + 8:.1f}" y="{y + 18}" font-size="14">{kl[name]:.2g}</text>')
    lines.append(f'<text x="{LEFT}" y="{bottom + 38}" font-size="12">mean KL divergence, nats (lower is better)</text>')
    return "\n".join([*lines, "</svg>\n"])
