"""The only file that touches disk for results: tensors, weights and tables, each beside a JSON
sidecar that says what it is."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nda.errors import InputError
from nda.places import home, shared

if TYPE_CHECKING:  # 33 MB that `nda trace` does without
    import pandas as pd

VERSIONS = {name: version(name) for name in ("torch", "diffusers", "numpy") if find_spec(name)} | {
    "python": platform.python_version()
}
_SCORED = "05_nda, 06_similarity, 07a_gradients, 07b_kernels, 07c_das, 08_influence and 15_beyond"
NOTEBOOKS = {
    "train": "01_data",
    "val": "01_data",
    "masks": "01_data",
    "model": "02_diffusion_model",
    "gen": "02_diffusion_model",
    "members": "03_subset_models",
    "losses": "03_subset_models",
    "curvature": "08_influence",
    "scores": _SCORED,
    "ablations": "05_nda and 08b_settings",
    "effects": _SCORED,
    "counterfactual": "09_counterfactual",
    "known": "18_known_answers",
    "gallery": "09_counterfactual",
}
Value: TypeAlias = "Tensor | Mapping[str, Tensor] | pd.DataFrame"
Role = Literal["working", "results"]
COPIED = "{} as it was computed"  # the input of a copy in fewer bits: what it is a copy of


class Store:
    """A folder of named results.

    `save` writes a tensor or a dictionary of tensors (safetensors) or a table (CSV) and its
    sidecar; `load` gives it back after checking its hash, its axes and that its inputs have not
    changed since. Nothing is pickled. A write is atomic: it goes to a temporary file first, so that
    a full disk or a kill leaves the old result or none, never half of one.

    Args:
        folder: where they are.
        role: `"working"` or `"results"`, if this is one of the two stores of a profile: `used_as`
            then refuses to take one for the other.
    """

    def __init__(self, folder: Path | str, *, role: Role | None = None):
        self.folder, self.role = Path(folder), role

    @classmethod
    def working(cls, profile: str) -> Self:
        """`data/<profile>/`: everything that a profile computes; not committed.

        Args:
            profile: its name.

        Returns:
            The store.
        """
        return cls(home() / "data" / profile, role="working")

    @classmethod
    def results(cls, profile: str) -> Self:
        """`data/results/<profile>/`: the small sufficient statistics that the results notebooks
        read.

        Args:
            profile: its name.

        Returns:
            The store.
        """
        return cls(home() / "data" / "results" / profile, role="results")

    @classmethod
    def shipped(cls, profile: str) -> Self:
        """`data/results/<profile>/` that comes with the module, wherever `NDA_HOME` points.

        Args:
            profile: its name.

        Returns:
            The store.
        """
        return cls(shared("results") / profile, role="results")

    def used_as(self, role: Role) -> Self:
        """This store, for a function that takes one of the two stores of a profile.

        Args:
            role: `"working"` or `"results"`.

        Returns:
            Itself.

        Raises:
            InputError: if it is the other one.
        """
        if self.role not in (None, role):
            raise InputError(
                f"{self.folder} is a {self.role} store, but a {role} store is needed here; pass"
                f" Store.{role}(profile)"
            )
        return self

    def __contains__(self, name: str) -> bool:
        return self._sidecar(name).exists()

    def names(self) -> list[str]:
        """All results here.

        Returns:
            Their names, sorted.
        """
        return sorted(
            str(path.relative_to(self.folder))[: -len(".json")]
            for path in self.folder.rglob("*.json")
        )

    def info(self, name: str) -> dict[str, Any]:
        """The sidecar of a result: kind, axes, shape, dtype, sha256, parameters, inputs, seconds,
        device, versions, written.

        Args:
            name: of the result.

        Returns:
            What the sidecar says.

        Raises:
            InputError: if the result is missing or its sidecar damaged.
        """
        try:
            info = json.loads(self._sidecar(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            advice = "it has not been computed yet"
            if notebook := NOTEBOOKS.get(name.split("/")[0]):
                advice = f"run notebook {notebook} first (python -m nda run)"
            raise InputError(f"{name} is missing in {self.folder}: {advice}") from None
        except ValueError:  # not JSON, or not even text
            info = None
        needed = {"kind", "axes", "sha256", "parameters", "inputs"}
        if not isinstance(info, dict) or not needed <= info.keys():
            raise InputError(
                f"the sidecar of {name} in {self.folder} is damaged; delete it and compute {name}"
                " again"
            )
        return info

    def save(
        self,
        name: str,
        value: Value,
        *,
        axes: str = "",
        parameters: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        seconds: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `value` under `name`. If it fails, the folder is as before.

        Args:
            name: of the result.
            value: a tensor, a dictionary of tensors, or a table.
            axes: names of a tensor's axes, for example `"subset seed query"`.
            parameters: what it was computed with; a result that is already there with other
                parameters is not overwritten.
            inputs: `{name: sha256}` of what it was computed from (see `sha256`); a result that is
                already there from other inputs is not overwritten either.
            seconds: wall-clock time it took.
            notes: what else is worth knowing of how it was computed; not compared.

        Raises:
            InputError: if there is one with other parameters or from other inputs, if the axes do
                not fit, or if it cannot be written.
        """
        made = {"parameters": plain(parameters or {}), "inputs": dict(inputs or {})}
        self._refuse_other(name, made)
        kind, suffix, payload = _encode(value)
        if isinstance(value, Tensor) and len(axes.split()) != value.ndim:
            raise InputError(f"axes of {name} must name {value.ndim} axes, not {axes!r}")
        sidecar = {
            "kind": kind,
            "axes": axes,
            **_describe(value),
            "sha256": hashlib.sha256(payload).hexdigest(),
            **made,
            "seconds": seconds,
            **({"notes": dict(notes)} if notes else {}),
            "versions": VERSIONS,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_all({self._path(name, suffix): payload, self._sidecar(name): _json(sidecar)})

    def correct(self, name: str, *, reason: str, date: str, **changed: Any) -> bool:
        """Put right what the sidecar of a result says, without touching the result, and say so
        under `"corrected"`. Where all is right already, nothing is written.

        Args:
            name: of the result.
            reason: why it was wrong.
            date: of the correction, as YYYY-MM-DD.
            changed: the true `parameters`, `inputs` or other entries.

        Returns:
            Whether anything had to be put right.
        """
        info = self.info(name)
        right = info | plain(changed)
        if wrong := right != info:
            right["corrected"] = {"date": date, "reason": reason}
            write_all({self._sidecar(name): _json(right)})
        return wrong

    def matches(self, name: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether `name` is here, computed with these parameters from these inputs, so that it need
        not be computed again.

        Args:
            name: of the result.
            parameters: as in `save`.
            inputs: as in `save`.

        Returns:
            Whether it is.
        """
        if name not in self:
            return False
        info = self.info(name)
        return info["parameters"] == plain(parameters) and info["inputs"] == dict(inputs)

    def kept(
        self,
        name: str,
        make: Callable[[], Value],
        *,
        axes: str = "",
        parameters: Mapping[str, Any],
        inputs: Mapping[str, str],
        seconds: float | None | Literal["measured"] = "measured",
        notes: Mapping[str, Any] | None = None,
    ) -> Any:
        """What is under `name` if it was computed with these parameters from these inputs; if not,
        what `make` returns, saved there.

        For results that a killed run need not compute again: one that does not match is replaced.

        Args:
            name: of the result.
            make: computes it.
            axes: as in `save`.
            parameters: as in `save`.
            inputs: as in `save`.
            seconds: what it took, where that is not the time that `make` takes now.
            notes: as in `save`; `make` may fill them.

        Returns:
            The result.
        """
        if not self.matches(name, parameters, inputs):
            started, value = perf_counter(), make()
            took = perf_counter() - started if seconds == "measured" else seconds
            made: dict = {"parameters": parameters, "inputs": inputs}
            made |= {"seconds": took, "notes": notes}
            if not self.matches(name, parameters, inputs):  # another process may have been faster
                self.delete(name)
                self.save(name, value, axes=axes, **made)
        return self.load(name)

    def load(self, name: str, axes: str | None = None) -> Any:
        """The result called `name`: a tensor, a dictionary of tensors, or a table.

        Args:
            name: of the result.
            axes: those that it must have, if any are asked for.

        Returns:
            The result.

        Raises:
            InputError: if it is missing or was changed on disk (see `read`), has other axes than
                asked for, or was computed from inputs that have been replaced since.
        """
        info, payload = self.info(name), self.read(name)
        if axes is not None and info["axes"] != axes:
            raise InputError(
                f"{name} in {self.folder} has axes {info['axes']!r}, not {axes!r}; it is from"
                " another version, compute it again"
            )
        stale = [i for i, sha in info["inputs"].items() if i in self and self.sha256(i)[i] != sha]
        if stale:
            raise InputError(
                f"{name} in {self.folder} was computed from another {stale[0]}; delete {name} and"
                " compute it again"
            )
        return _decode(info["kind"], payload)

    def read(self, name: str) -> bytes:
        """The bytes of a result, which are those that were written.

        Args:
            name: of the result.

        Returns:
            The file's content.

        Raises:
            InputError: if the result is missing or was changed on disk.
        """
        info = self.info(name)
        path = self._path(name, ".csv" if info["kind"] == "table" else ".safetensors")
        payload = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(payload).hexdigest() != info["sha256"]:
            raise InputError(
                f"{path} does not match the sha256 in its sidecar; delete both and compute {name}"
                " again"
            )
        return payload

    def sha256(self, *names: str) -> dict[str, str]:
        """`{name: sha256}`, to be passed as `inputs` of what is computed from them.

        Args:
            names: of results; of a copy in fewer bits, the hash is that of what was copied.

        Returns:
            Their hashes.
        """
        infos = {name: self.info(name) for name in names}
        return {
            name: info["inputs"].get(COPIED.format(name), info["sha256"])
            for name, info in infos.items()
        }

    def write(self, file: str, text: str) -> None:
        """A page for people, without a sidecar.

        Args:
            file: its name.
            text: what it says.
        """
        write_all({self.folder / file: text.encode()})

    def delete(self, name: str) -> None:
        """Remove a result if it is there, sidecar first.

        Args:
            name: of the result.
        """
        self._sidecar(name).unlink(missing_ok=True)
        for suffix in (".safetensors", ".csv"):
            self._path(name, suffix).unlink(missing_ok=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{suffix}"

    def _sidecar(self, name: str) -> Path:
        return self._path(name, ".json")

    def _refuse_other(self, name: str, made: dict[str, dict[str, Any]]) -> None:
        """Raise if what is there was computed otherwise."""
        old = self.info(name) if name in self else made
        for what, how in {"parameters": "with other", "inputs": "from other"}.items():
            changed = [
                key
                for key in sorted(old[what] | made[what])
                if old[what].get(key) != made[what].get(key)
            ]
            if changed:
                raise InputError(
                    f"{name} in {self.folder} was computed {how} {what} ({', '.join(changed)});"
                    " delete that folder or choose another profile name"
                )


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: first beside their places, then there.

    Args:
        files: what is to be in each. The last is written last, and without it none of them count:
            it is the sidecar of a result.

    Raises:
        InputError: if that fails; what was there before is then as it was.
    """
    temporary: dict[Path, Path] = {}
    sidecar = list(files)[-1]
    try:
        for path, payload in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = path.with_name(f".writing-{os.getpid()}-{path.name}.part")
            with temporary[path].open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
        sidecar.unlink(missing_ok=True)
        for path, written in temporary.items():
            os.replace(written, path)
    except OSError as error:
        raise InputError(
            f"could not write {sidecar.with_suffix('')}: {error.strerror}; what was there"
            " before is intact"
        ) from error
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON gives them back: tuples become lists.

    Args:
        values: whatever JSON can hold.

    Returns:
        The same, as a sidecar holds it.
    """
    return json.loads(json.dumps(dict(values)))


def digest_json(values: Any) -> str:
    """The sha256 of plain values, whatever the order of their keys: of a recipe, for example.

    Args:
        values: whatever JSON can hold.

    Returns:
        The hash.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors, with their names, shapes and dtypes.

    Args:
        tensors: by name.

    Returns:
        The hash.
    """
    made = hashlib.sha256()
    for name, tensor in tensors.items():
        made.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        made.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return made.hexdigest()


def _json(sidecar: Mapping[str, Any]) -> bytes:
    return json.dumps(sidecar, indent=1, ensure_ascii=False).encode()


def _encode(value: Value) -> tuple[str, str, bytes]:
    if not isinstance(value, Tensor | Mapping):
        return "table", ".csv", value.to_csv(index=False).encode()
    tensors = {"value": value} if isinstance(value, Tensor) else value
    payload = save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )
    return ("tensor" if isinstance(value, Tensor) else "tensors"), ".safetensors", payload


def _decode(kind: str, payload: bytes) -> Any:
    if kind == "table":
        import pandas as pd

        # exact floats, and a method called "null" stays one
        return pd.read_csv(
            BytesIO(payload), float_precision="round_trip", keep_default_na=False, na_values=[""]
        )
    tensors = load_tensors(payload)
    return tensors["value"] if kind == "tensor" else tensors


def _describe(value: Value) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "device": str(value.device)}
    if not isinstance(value, Mapping):
        return {"shape": list(value.shape), "dtype": "table", "device": "cpu"}
    return {
        "shape": {k: list(v.shape) for k, v in value.items()},
        "dtype": sorted({str(v.dtype) for v in value.values()}),
        "device": "cpu",
    }
