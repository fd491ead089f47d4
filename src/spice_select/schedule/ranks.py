"""Several processes that work on one run, as torchrun and accelerate start them.

What travels is tensors and JSON, never pickles. All processes must make the same calls in the same order. Each call
begins with a word from every process that it is well, and a process that fails inside of :meth:`Ranks.together` says so
in place of that word: whatever the others were about to exchange, they fail with the same sentence instead of waiting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from spice_select.errors import ConfigError, ResourceError, SpiceError, retold, told

# A rank may wait while another selects, or writes to a slow disk; a rank that died is noticed at once.
_PATIENCE = timedelta(hours=6)


class Ranks:
    """This process among those of the run.

    Attributes:
        rank: Number of this process, from 0.
        world: Number of processes.
        local: Number of this process on its machine, from 0.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, *, device_wire: bool = False) -> None:
        assert 0 <= rank < world
        self.rank = rank
        self.world = world
        self.local = local
        # Without NCCL, tensors of a device travel through the host.
        self._device_wire = device_wire
        self._agreed: Exception | None = None

    @classmethod
    def from_environment(cls) -> Ranks:
        """Join the processes that the environment names (``WORLD_SIZE`` and its kin); one process where it names none.

        Raises:
            ConfigError: The environment is incomplete.
            ResourceError: The other processes cannot be reached.
        """
        world = _number("WORLD_SIZE", 1)
        if world <= 1:
            return cls()
        rank, local = _number("RANK", None), _number("LOCAL_RANK", 0)
        if not 0 <= rank < world:
            raise ConfigError(f"The environment's RANK cannot be {rank} with WORLD_SIZE {world}; start with torchrun.")
        devices = torch.cuda.device_count()
        nccl = dist.is_nccl_available() and 0 < _number("LOCAL_WORLD_SIZE", world) <= devices
        if nccl:
            torch.cuda.set_device(local)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ResourceError(
                f"Process {rank} of {world} cannot reach the others ({reason[0].rstrip('.')}); start them all with "
                "torchrun."
            ) from None
        return cls(rank, world, local, device_wire=nccl)

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """``model.device`` for this process: its own device where several share a machine."""
        if self.world > 1 and name in ("auto", "cuda") and self._device_wire:
            return f"cuda:{self.local}"
        return name

    def barrier(self) -> None:
        """Wait until all are here."""
        self._agree(None)

    def all_gather(self, content: Any) -> list[Any]:
        """What JSON can hold, from every process, in the order of their ranks."""
        if self.world == 1:
            return [content]
        self._agree(None)
        return self._all_gather(content)

    def _all_gather(self, content: Any) -> list[Any]:
        sent = torch.from_numpy(np.frombuffer(json.dumps(content).encode(), dtype=np.uint8).copy())
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with _explained():
            dist.all_gather(sizes, torch.tensor([len(sent)]))
            most = max(int(size) for size in sizes)
            padded = torch.zeros(most, dtype=torch.uint8)
            padded[: len(sent)] = sent
            parts = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.world)]
            dist.all_gather(parts, padded)
        return [
            json.loads(part[: int(size)].numpy().tobytes().decode()) for part, size in zip(parts, sizes, strict=True)
        ]

    def broadcast(self, content: Any) -> Any:
        """What JSON can hold, from rank 0 to all; what the others give is not looked at."""
        return self.all_gather(content if self.main else None)[0]

    def broadcast_tensor(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite a tensor, which all have in the same shape, by that of one rank."""
        if self.world == 1:
            return
        self._agree(None)
        wire = self._wire(tensor)
        with _explained():
            dist.broadcast(wire, source)
        if wire is not tensor:
            tensor.copy_(wire)

    def exchange(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Sequence[int]], like: Tensor
    ) -> dict[int, Tensor]:
        """Send one tensor to each of some ranks, and receive from some; empty ones do not travel.

        Args:
            outgoing: Tensor for each rank that expects one.
            incoming: Shape of what each rank sends.
            like: Has the dtype and the device of all tensors.
        """
        self._agree(None)
        wire = like.device if self._device_wire else torch.device("cpu")
        found = {rank: torch.empty(*shape, dtype=like.dtype, device=wire) for rank, shape in incoming.items()}
        sent = {rank: self._wire(tensor) for rank, tensor in outgoing.items()}
        operations = [dist.P2POp(dist.isend, tensor, rank) for rank, tensor in sorted(sent.items()) if tensor.numel()]
        operations += [dist.P2POp(dist.irecv, tensor, rank) for rank, tensor in sorted(found.items()) if tensor.numel()]
        if operations:
            with _explained():
                for work in dist.batch_isend_irecv(operations):
                    work.wait()
        return {rank: tensor.to(like.device) for rank, tensor in found.items()}

    def gather_to(self, tensor: Tensor, owner: int) -> list[Tensor] | None:
        """Tensors of all ranks at one of them; they may differ in their first dimension. Elsewhere None."""
        if self.world == 1:
            return [tensor]
        shapes = self.all_gather(list(tensor.shape))
        others = [rank for rank in range(self.world) if rank != owner]
        if self.rank != owner:
            self.exchange({owner: tensor}, {}, tensor)
            return None
        found = self.exchange({}, {rank: shapes[rank] for rank in others}, tensor)
        return [found[rank] if rank != owner else tensor for rank in range(self.world)]

    def all_gather_grams(
        self, parts: Mapping[int, Float[Tensor, "n n"]], owners: Sequence[int], count: int
    ) -> Float[Tensor, "n n"]:
        """Sum of matrices that lie on several ranks, added in their order and not in that of the ranks.

        Args:
            parts: This rank's matrices by number, float64.
            owners: Rank that has each matrix.
            count: Rows of each.

        Returns:
            The same bits on every rank, on the host.
        """
        total = torch.zeros(count, count, dtype=torch.float64)
        for number, owner in enumerate(owners):
            part = parts[number].cpu() if owner == self.rank else torch.empty_like(total)
            self.broadcast_tensor(part, owner)
            total += part
        return total

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step that fails for all processes where it fails for one.

        At the end all learn whether all are well. A process whose own step failed raises its own error; the others
        raise that of the lowest rank that failed, here or in the middle of whatever they were exchanging.

        Raises:
            SpiceError: The step failed here or elsewhere.
        """
        try:
            yield
        except Exception as error:
            known = self._agreed
            if known is None or (error is not known and error.__context__ is not known):
                self._agree(error)
            raise
        self._agree(None)

    def _agree(self, failure: Exception | None) -> None:
        """Tell the others of a failure, or hear of theirs.

        Raises:
            SpiceError: Another process failed, and this one did not.
        """
        if self.world == 1:
            return
        heard = self._all_gather(None if failure is None else told(failure))
        rank = next((rank for rank, found in enumerate(heard) if found is not None), None)
        if rank is None:
            return
        self._agreed = failure or _retold(rank, *heard[rank])
        if failure is None:
            raise self._agreed

    def close(self) -> None:
        """Leave the other processes."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _wire(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return (tensor if self._device_wire else tensor.cpu()).contiguous()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            "Another process of this run has ended or cannot be reached; see its own message, and run the same command "
            "again to go on from the last checkpoint."
        ) from error


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        shown = "missing" if text is None else f"'{text}'"
        raise ConfigError(f"The environment's {name} is {shown}; start several processes with torchrun.") from None


def _retold(rank: int, kinds: list[str], sentence: str) -> SpiceError:
    known = retold(kinds, sentence)
    return known or SpiceError(f"Process {rank} failed ({kinds[0]}: {sentence}); see its own message.")


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that the environment names, for as long as the block runs.

    Raises:
        ConfigError: The environment is incomplete.
        ResourceError: The other processes cannot be reached.
    """
    ranks = Ranks.from_environment()
    try:
        yield ranks
    finally:
        ranks.close()
