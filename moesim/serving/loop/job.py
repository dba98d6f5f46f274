"""A request on its way through a server."""


class Job:
    """The state of a request.

    Attributes:
        id: Number of the request, in order of sending.
        isl: Tokens of the prompt.
        osl: Tokens of the answer.
        sent_s: When the client sent it.
        start_s: When the first step with its prompt began; None before.
        first_s: When its first token reached the client; None before.
        last_s: When its newest token reached the client, known while the job does not decode.
        end_s: When its last token reached the client; None before.
        emitted: Tokens of the answer so far, known while the job does not decode.
        todo: Tokens that the current prefill computes: the prompt, and, after a preemption, the
            answer so far.
        done: Those of them that have been computed.
        cached: Whether its KV cache comes from a prefill server instead of a prefill here.
        blocks: KV blocks that are reserved while it is prefilled.
        preemptions: How often it lost its KV blocks.
        recomputed_tokens: Tokens that were computed, lost by preemption, and are computed again.
    """

    __slots__ = (
        "blocks",
        "cached",
        "done",
        "emitted",
        "end_s",
        "first_s",
        "id",
        "isl",
        "last_s",
        "osl",
        "preemptions",
        "recomputed_tokens",
        "sent_s",
        "start_s",
        "todo",
    )

    def __init__(self, number: int, isl: int, osl: int, sent_s: float) -> None:
        self.id, self.isl, self.osl, self.sent_s = number, isl, osl, sent_s
        self.start_s: float | None = None
        self.first_s: float | None = None
        self.last_s = sent_s
        self.end_s: float | None = None
        self.emitted = self.done = self.blocks = self.preemptions = self.recomputed_tokens = 0
        self.todo = isl
        self.cached = False

    def most_tokens(self, draft_length: int) -> int:
        """Return the most tokens of its KV cache at any time: the last token of the answer is not
        computed, but every decode step also writes its drafted tokens.
        """
        return self.isl + self.osl - 1 + draft_length
