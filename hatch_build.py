"""Compiles the package's C code where there is a C compiler. Without one everything works as well, with numpy."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = (
    "src/suture/noise.c",
    "src/suture/execute/fused.c",
    "src/suture/verification/exact.c",
    "src/suture/formats/quantized/four_bits.c",
)
LIBRARY = "src/suture/_compiled.clib"
# Fused multiply-adds stand where the source says so and nowhere else: the bytes must be the same on every machine.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
WIDE = ("-mprefer-vector-width=512",)  # of x86 alone


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Builds the shared library into the source tree, and puts it into a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel or an editable installation is made."""
        library = Path(self.root) / LIBRARY
        if not self._compiled([Path(self.root) / source for source in SOURCES], library):
            library.unlink(missing_ok=True)
            return
        if version != "editable":
            build_data["force_include"][str(library)] = LIBRARY.removeprefix("src/")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def _compiled(self, sources: list[Path], library: Path) -> bool:
        compiler = os.environ.get("CC", "cc").split()
        why = ""
        for flags in ((*FLAGS, *WIDE), FLAGS):
            command = [*compiler, *flags, "-shared", "-fPIC", "-o", str(library), *map(str, sources), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                why = str(error)
                break
            if done.returncode == 0:
                return True
            why = done.stderr.strip()
        self.app.display_warning(
            f"Suture's C code was not compiled ({why}); merges and proofs will use numpy, which is slower"
        )
        return False
