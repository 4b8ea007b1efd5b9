"""A batch that stays full: rows that finish make room for the next ones in the queue, whatever their prompts."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datablame.seeds import uniforms
from datablame.surface.sampler.cache import closing_up
from datablame.surface.sampler.choice import Settings, choose, chosen_log_probabilities
from datablame.surface.sampler.decoder import Decoder


class Drawn:
    """What was drawn for every request so far: tokens, sums of log-probabilities, and which requests are done."""

    def __init__(
        self,
        keys: Sequence[int],
        alphas: Sequence[float],
        *,
        settings: Settings,
        stop_ids: Sequence[int],
        vocabulary_size: int,
        weighed: tuple[float, ...] | None,
        device: torch.device,
    ) -> None:
        steps, n = settings.max_new_tokens, len(keys)
        self._settings, self._vocabulary_size, self._weighed = settings, vocabulary_size, weighed
        greedy = settings.temperature == 0
        rows = [
            torch.zeros(steps, dtype=torch.float64) if greedy else torch.from_numpy(uniforms(k, steps)) for k in keys
        ]
        self._uniform = torch.stack(rows).to(device)
        self._alpha = torch.tensor(list(alphas), dtype=torch.float32, device=device)
        is_stop = torch.zeros(vocabulary_size, dtype=torch.bool)
        is_stop[[token for token in stop_ids if token < vocabulary_size]] = True
        self._is_stop = is_stop.to(device)
        self._count = torch.zeros(n, dtype=torch.long, device=device)
        self.tokens = torch.full((n, steps), -1, device=device)
        self.sums = torch.zeros(n, 2 + len(weighed or ()), dtype=torch.float64, device=device)
        self.done = torch.zeros(n, dtype=torch.bool, device=device)

    def forget_unfinished(self) -> None:
        """Begin anew with what is not done."""
        self.tokens[~self.done] = -1
        self.sums[~self.done] = 0
        self._count[~self.done] = 0

    def draw(
        self, requests: Int[Tensor, " rows"], logits: Sequence[Float[Tensor, "rows branches embedding"]]
    ) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The next token of each request, and which of them go on; the logits are after's and before's, if needed."""
        parts = [part for model in logits for part in model.to(self._alpha.device).unbind(1)]
        a, *rest = (part[:, : self._vocabulary_size] for part in parts)
        b = rest[0] if rest else None
        count = self._count[requests]
        chosen = choose(a, b, self._alpha[requests], self._uniform[requests, count], self._settings)
        if self._weighed is not None and b is not None:
            self.sums[requests] += chosen_log_probabilities(a, b, chosen, self._weighed)
        self.tokens[requests, count] = chosen
        self._count[requests] = count + 1
        on = ~self._is_stop[chosen] & (count + 1 < self.tokens.shape[1])
        self.done[requests] = ~on
        return chosen, on


@torch.inference_mode()
def fill_and_run(
    decoders: Sequence[Decoder], drawn: Drawn, queue: Sequence[int], prompts: Sequence[int], capacity: int
) -> None:
    """Draw the queue's requests, at most `capacity` at once; request r follows the prompt with the number prompts[r].

    Which row a request gets and when depends on the queue and on what is drawn alone.
    """
    device = drawn.done.device
    refills = all(decoder.refills for decoder in decoders)
    none = torch.empty(0, dtype=torch.long, device=device)
    live, chosen, on = none, none, none.bool()
    at = 0
    while True:
        room = capacity - int(on.sum())
        if room == capacity and len(on):
            live, chosen, on = none, none, none.bool()
            for decoder in decoders:
                decoder.keep(none, none)
        while room and at < len(queue) and (refills or room == capacity):
            group = list(queue[at : at + room])
            at += len(group)
            numbers = [prompts[request] for request in group]
            requests = torch.tensor(group, device=device)
            tokens, going = drawn.draw(requests, [decoder.first(numbers) for decoder in decoders])
            survivors = going.nonzero().squeeze(1)
            if len(survivors) == 0:
                continue
            rows = _rows_for(on, len(survivors))
            more = max(0, len(survivors) - int((~on).sum()))
            live, chosen, on = (torch.cat([each, each.new_zeros(more)]) for each in (live, chosen, on))
            live[rows], chosen[rows], on[rows] = requests[survivors], tokens[survivors], True
            for decoder in decoders:
                decoder.place(numbers, survivors, rows, len(live))
            room -= len(survivors)
        if len(on) == 0:
            return
        kept, holes = closing_up(on)
        if len(kept) < len(on):
            live, chosen = live[kept], chosen[kept]
            for decoder in decoders:
                decoder.keep(kept, holes)
        logits = [decoder.launch(chosen) for decoder in decoders]
        for decoder in decoders:
            decoder.join()
        chosen, on = drawn.draw(live, logits)


def _rows_for(on: Bool[Tensor, " rows"], new: int) -> Int[Tensor, " new"]:
    """Rows that finished, then rows behind the last."""
    free = (~on).nonzero().squeeze(1)[:new]
    return torch.cat([free, torch.arange(len(on), len(on) + new - len(free), device=on.device)])
