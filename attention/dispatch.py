"""Which methods take which attention call of a forward pass."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from .batch import Batch
from .blocks import Block
from .method import Call, Layer, Method, Next, Prepared, Watcher, call_attention


class Dispatch:
    """Takes each attention call of one forward pass through the methods that count in its block."""

    def __init__(self, chosen: Mapping[Block, list[Method]], prepared: Mapping[Method, Prepared | None], batch: Batch):
        self.rows = batch.rows
        self.report = batch.report
        self.methods: dict[Block, list[tuple[Method, Prepared]]] = {}
        for block, methods in chosen.items():
            active = ((method, prepared[method]) for method in methods)
            self.methods[block] = [(method, each) for method, each in active if each is not None]
        counting = dict.fromkeys(each for methods in self.methods.values() for _, each in methods)
        self.watchers = [each for each in counting if isinstance(each, Watcher)]

    def wants(self, layer: Layer) -> bool:
        watched = bool(self.watchers) and layer.kind != "self"
        return watched or any(layer.kind in method.kinds for method, _ in self.methods[layer.block])

    def attend(self, call: Call) -> Tensor:
        if call.text is not None and len(call.q) == len(call.k) == self.rows:
            for watcher in self.watchers:
                watcher.watch(call)
        chain: Next = call_attention
        for method, prepared in reversed(self.methods[call.layer.block]):
            if call.layer.kind in method.kinds:
                if len(call.q) != self.rows or len(call.k) != self.rows:
                    self.skip("splits the batch", method, call.layer)
                elif call.text is None and "cross" in method.kinds:
                    self.skip("or a reference picture changes the text", method, call.layer)
                else:
                    chain = partial(prepared.attend, next=chain)
        return chain(call)

    def missed(self, layer: Layer) -> None:
        for method, _ in self.methods[layer.block]:
            if layer.kind in method.kinds:
                self.skip("replaces the attention", method, layer)

    def skip(self, what: str, method: Method, layer: Layer) -> None:
        self.report.skip(f"another model patch {what}, so {method.name} is skipped there", layer.block)
