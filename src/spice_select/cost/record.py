"""The predicted cost of a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, computed_field


class Cost(BaseModel):
    """The cost of collecting gradients and selecting, predicted; times and memory are those of machines like this one.

    Attributes:
        examples: Rows that are priced.
        rows_read: Rows whose lengths the prediction rests on; fewer than ``examples`` where more were asked for.
        usable: Rows with a gradient to take.
        tokens: Tokens of the usable rows.
        response_tokens: Trained tokens among them.
        picks: Rows that would be chosen at most.
        gradient_dim: Length of a gradient row.
        workers: Processes that share the collect.
        machines: Machines that they run on.
        partitions: Parts that are selected from by themselves, before the picks of all of them are; 1: no parts.
        flops: Floating-point operations of the forward and backward passes.
        disk_bytes: Size of what is measured and kept, such as the gradient store.
        result_bytes: Size of what a selection writes: the chosen rows, their trace and the page.
        disk_free_bytes: Room where it would go.
        model_bytes: Size of the proxy's weights.
        collect_memory_bytes: Largest memory of the collect in one process, files that are mapped aside.
        select_memory_bytes: The same of the selection.
        device_memory_bytes: Largest memory on a GPU seen while measuring.
        collect_network_bytes: What crosses the network in a collect: weights to each other machine, tokens of the rows
            that it measures, and their gradients to the storage that all share. 0 on one machine.
        select_network_bytes: The same of the selection: gradients read from the shared storage.
        reading_seconds: Time to read and encode the rows.
        loading_seconds: Time to load the proxy.
        gradient_seconds: Time to collect the gradients.
        training_seconds: Time to train the proxy on the way, at the speed of its gradients.
        measuring_seconds: Time of what a method needs beside gradients.
        verifying_seconds: Time to hash the store, which a selection of its own does before it trusts it.
        selection_seconds: Time to select.
        penalty_seconds: Time to select again without penalty, which tells what the penalty changed.
        certificate_seconds: Time of the certificate.
        activity_seconds: Time to count conflicts.
        result_seconds: Time to write the chosen rows and the page.
        method: The method.
        kept: Whether gradients are kept; pools keep inner products at most.
        measured_batches: Batches that the prediction rests on.
        measured_tokens_per_second: Their speed, padding counted, in one process.
        notes: What the figures do not know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int
    rows_read: int
    usable: int
    tokens: int
    response_tokens: int
    picks: int
    gradient_dim: int
    workers: int = 1
    machines: int = 1
    partitions: int = 1
    flops: float
    disk_bytes: int
    result_bytes: int = 0
    disk_free_bytes: int
    model_bytes: int = 0
    collect_memory_bytes: int
    select_memory_bytes: int = 0
    device_memory_bytes: int = 0
    collect_network_bytes: int = 0
    select_network_bytes: int = 0
    reading_seconds: float = 0.0
    loading_seconds: float = 0.0
    gradient_seconds: float
    training_seconds: float = 0.0
    measuring_seconds: float = 0.0
    verifying_seconds: float = 0.0
    selection_seconds: float = 0.0
    penalty_seconds: float = 0.0
    certificate_seconds: float = 0.0
    activity_seconds: float = 0.0
    result_seconds: float = 0.0
    method: str = "spice"
    kept: bool = True
    measured_batches: int
    measured_tokens_per_second: float
    notes: tuple[str, ...] = ()

    @computed_field
    @property
    def collect_seconds(self) -> float:
        """Time until the gradients, and whatever else the method needs, are there."""
        passes = self.gradient_seconds + self.training_seconds + self.measuring_seconds
        return self.reading_seconds + self.loading_seconds + passes

    @computed_field
    @property
    def select_seconds(self) -> float:
        """Time from there to the results."""
        choosing = self.selection_seconds + self.penalty_seconds
        return choosing + self.certificate_seconds + self.activity_seconds + self.result_seconds

    @computed_field
    @property
    def peak_memory_bytes(self) -> int:
        """The larger of the two memories."""
        return max(self.collect_memory_bytes, self.select_memory_bytes)

    @computed_field
    @property
    def network_bytes(self) -> int:
        """All that crosses the network."""
        return self.collect_network_bytes + self.select_network_bytes
