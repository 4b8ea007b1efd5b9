"""A batch that stays full: rows that finish make room for the next ones in the queue, whatever their prompts."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datablame.seeds import uniforms
from datablame.surface.sampler.cache import compaction
from datablame.surface.sampler.decoder import Decoder
from datablame.surface.sampler.tokens import Settings, sample_token, token_log_probabilities


class Outputs:
    """Every request's output so far: its tokens, its sums of log-probabilities, and whether it is done."""

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

    def extend(
        self, requests: Int[Tensor, " rows"], logits: Sequence[Float[Tensor, "rows models embedding"]]
    ) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The next token of each request, and which of them go on; the logits are after's and before's, if needed."""
        parts = [part for models in logits for part in models.to(self._alpha.device).unbind(1)]
        a, *rest = (part[:, : self._vocabulary_size] for part in parts)
        b = rest[0] if rest else None
        count = self._count[requests]
        tokens = sample_token(a, b, self._alpha[requests], self._uniform[requests, count], self._settings)
        if self._weighed is not None and b is not None:
            self.sums[requests] += token_log_probabilities(a, b, tokens, self._weighed)
        self.tokens[requests, count] = tokens
        self._count[requests] = count + 1
        on = ~self._is_stop[tokens] & (count + 1 < self.tokens.shape[1])
        self.done[requests] = ~on
        return tokens, on


@torch.inference_mode()
def fill_and_run(
    decoders: Sequence[Decoder], outputs: Outputs, queue: Sequence[int], prompts: Sequence[int], capacity: int
) -> None:
    """Draw the queue's requests, at most `capacity` at once; request r follows the prompt with the number prompts[r].

    Which row a request gets and when depends on the queue and on what is drawn alone.
    """
    device = outputs.done.device
    refills = all(decoder.refills for decoder in decoders)
    none = torch.empty(0, dtype=torch.long, device=device)
    live, tokens, on = none, none, none.bool()
    taken = 0
    while True:
        room = capacity - int(on.sum())
        if room == capacity and len(on):
            live, tokens, on = none, none, none.bool()
            for decoder in decoders:
                decoder.drop_rows(none, none)
        while room and taken < len(queue) and (refills or room == capacity):
            group = list(queue[taken : taken + room])
            taken += len(group)
            numbers = [prompts[request] for request in group]
            requests = torch.tensor(group, device=device)
            first, going = outputs.extend(requests, [decoder.first(numbers) for decoder in decoders])
            survivors = going.nonzero().squeeze(1)
            if len(survivors) == 0:
                continue
            # Rows that finished, then rows behind the last.
            free = (~on).nonzero().squeeze(1)[: len(survivors)]
            more = len(survivors) - len(free)
            rows = torch.cat([free, torch.arange(len(on), len(on) + more, device=device)])
            live, tokens, on = (torch.cat([column, column.new_zeros(more)]) for column in (live, tokens, on))
            live[rows], tokens[rows], on[rows] = requests[survivors], first[survivors], True
            for decoder in decoders:
                decoder.add_rows(numbers, survivors, rows, len(live))
            room -= len(survivors)
        if len(on) == 0:
            return
        sources, holes = compaction(on)
        if len(sources) < len(on):
            live, tokens = live[sources], tokens[sources]
            for decoder in decoders:
                decoder.drop_rows(sources, holes)
        tokens, on = outputs.extend(live, [decoder.step(tokens) for decoder in decoders])
