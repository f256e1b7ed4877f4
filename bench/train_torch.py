"""Training steps of a Llama in PyTorch on the CPU: forward, backward, clipping, AdamW. The other half of train-vs-torch.

The fastest way PyTorch itself offers, measured on 2 cores: scaled_dot_product_attention rather than eager attention, the
fused AdamW, gradients set to None. `mode: "compile"` wraps model and loss in torch.compile.

Run: pip install -r bench/requirements.txt
     echo '{"cmd": "steps", "n": 5}' | python bench/train_torch.py '{"layers": 2, "width": 64, "ffn": 172, "mode": "eager"}'
Answers `{"ms": [per step], "loss": number}`. `ready` carries `parameters` and `tokensPerStep`.
"""

from peer import MODEL_DEFAULTS, Peer, clock, load_llama

peer = Peer(
    MODEL_DEFAULTS
    | dict(batch=32, tokens=128, mode="eager", attention="sdpa", optimizer="fused", learningRate=3e-4, warmup=2)
)
options = peer.options

with peer.starting():
    import torch
    import transformers

    model = load_llama(options, options["attention"], options["tokens"])
    batch, tokens = options["batch"], options["tokens"]
    draw = torch.Generator().manual_seed(options["seed"])
    ids = torch.randint(0, model.config.vocab_size, (batch, tokens + 1), generator=draw)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options["learningRate"],
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=options["optimizer"] == "fused",
        foreach=options["optimizer"] == "foreach",
    )

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    if options["mode"] not in ("eager", "compile"):
        raise ValueError(f"mode must be eager or compile; got {options['mode']!r}")
    run = torch.compile(loss_of) if options["mode"] == "compile" else loss_of

    def step() -> float:
        loss = run(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    started = clock()
    for _ in range(options["warmup"]):
        step()


def steps(request: dict) -> dict:
    ms, loss = [], None
    for _ in range(request["n"]):
        begin = clock()
        loss = step()
        ms.append((clock() - begin) * 1000)
    return {"ms": ms, "loss": loss}


peer.ready(
    torch,
    transformers,
    threads=torch.get_num_threads(),
    parameters=sum(p.numel() for p in model.parameters()),
    tokensPerStep=batch * tokens,
    warmupSeconds=clock() - started,
)
peer.serve({"steps": steps})
