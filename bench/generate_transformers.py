"""Batched sampling with transformers' `generate` on the CPU: the other half of generate-vs-transformers.

Temperature 1, no filter, no stop token: every row has exactly `newTokens` new tokens. Prompts are fixed random ids.
`cache` is dynamic (transformers' default), static (the default here: 1.15 times as fast at batch 64 on 2 cores) or compiled
(static, decoding through torch.compile: 1.3 times as fast; not offered for a CPU without a private switch).

Run: pip install -r bench/requirements.txt
     echo '{"cmd": "generate", "n": 2}' | python bench/generate_transformers.py '{"model": "FOLDER", "batch": 64}'
Answers `{"seconds": [per call], "tokensPerSecond": [per call]}`, counting new tokens of all rows. `model: null` draws weights.
"""

from peer import MODEL_DEFAULTS, Peer, clock, load_llama

peer = Peer(
    MODEL_DEFAULTS | dict(batch=64, promptTokens=32, newTokens=128, attention="sdpa", cache="static", warmup=2)
)
options = peer.options

with peer.starting():
    import torch
    import transformers
    from transformers import CompileConfig, GenerationConfig

    batch, new_tokens = options["batch"], options["newTokens"]
    model = load_llama(options, options["attention"], options["promptTokens"] + new_tokens).eval()
    draw = torch.Generator().manual_seed(options["seed"])
    prompts = torch.randint(0, model.config.vocab_size, (batch, options["promptTokens"]), generator=draw)
    attended = torch.ones_like(prompts)
    # What the model folder says about stopping and filtering must not shorten or change the work.
    model.generation_config = GenerationConfig(pad_token_id=0)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        use_cache=True,
        cache_implementation={"dynamic": None, "static": "static", "compiled": "static"}[options["cache"]],
        pad_token_id=0,
    )
    if options["cache"] == "compiled":
        # transformers compiles decoding over a static cache by itself on a GPU; on a CPU only by this private switch.
        config.compile_config = CompileConfig(mode="default", fullgraph=False)
        config.compile_config._compile_all_devices = True

    def call():
        out = model.generate(prompts, attention_mask=attended, generation_config=config)
        assert out.shape == (batch, options["promptTokens"] + new_tokens), out.shape

    started = clock()
    for _ in range(options["warmup"]):
        call()


def generate(request: dict) -> dict:
    seconds = []
    for _ in range(request["n"]):
        begin = clock()
        call()
        seconds.append(clock() - begin)
    return {"seconds": seconds, "tokensPerSecond": [batch * new_tokens / s for s in seconds]}


peer.ready(
    torch,
    transformers,
    threads=torch.get_num_threads(),
    parameters=sum(p.numel() for p in model.parameters()),
    warmupSeconds=clock() - started,
)
peer.serve({"generate": generate})
