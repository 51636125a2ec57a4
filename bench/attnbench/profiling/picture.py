"""The memory timeline of a profile as a picture. Needs matplotlib."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

_SHADES = {"forward": "#dbe9f6", "backward": "#fbe6d4"}


def draw_timeline(table: Path, picture: Path, title: str) -> None:
    """Draw ``memory.csv`` (see ``collect.write_timeline``) as a PNG."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = [(float(r["time_s"]), int(r["allocated_bytes"]), r["part"])
                for r in csv.DictReader(file)]  # fmt: skip
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for part, group in groupby(rows, key=lambda row: row[2]):
        times = [time_s * 1e3 for time_s, _, _ in group]
        axes.axvspan(times[0], times[-1], color=_SHADES[part], lw=0, label=part)
    times_ms = [time_s * 1e3 for time_s, _, _ in rows]
    sizes_mib = [size / 2**20 for _, size, _ in rows]
    axes.step(times_ms, sizes_mib, where="post", color="#1f4e79", lw=1.5)
    axes.set(xlabel="time while profiled (ms)", ylabel="beyond the inputs (MiB)", ylim=(0, None))
    axes.set_xlim(times_ms[0], times_ms[-1])
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(picture, dpi=120)
