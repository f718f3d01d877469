"""``python -m app``: serve the explorer. Also runs as a script from the root of the repository, as a Space does."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from app.demo import Exhibit
    from heatkv.models.base import GenerativeModel
    from heatkv.scores import HeadScores

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
if str(Path(__file__).parent) in sys.path:  # run as a script: the folder of the script comes first, not the root
    sys.path.remove(str(Path(__file__).parent))
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from heatkv.cli.parser import OneLineParser  # noqa: E402  (found now)
from heatkv.files import one_line, shown  # noqa: E402

CLOSING_SECONDS = 1.5
FIRST = "pocket-lines"  # the bundled model whose page stands at the root: in its pictures forgetting shows


def main(arguments: list[str] | None = None, program: str = "python -m app") -> None:
    options = _parser(program).parse_args(arguments)
    try:
        check_address(options.host, options.port)  # what is wrong is said before anything large is imported
        import app.gpu  # noqa: F401  (a borrowed GPU has to be announced before CUDA starts)
        from heatkv.models import bundled_folders, chosen_device, find_folder
        from heatkv.threads import keep_to_own_cores, share_freed_memory

        keep_to_own_cores()
        share_freed_memory()
        names = [options.model] if options.model else sorted(bundled_folders(), key=lambda name: (name != FIRST, name))
        if options.scores and len(names) > 1:
            names = names[:1]
        for name in names:
            find_folder(name)
        if options.device is not None:
            chosen_device(options.device)
        exhibits = [exhibit(name, options.device, options.dtype, options.scores) for name in names]
    except (ValueError, OSError, MemoryError) as error:
        raise SystemExit(refused(error)) from None
    from app.demo import create_pages, launch_options

    home = names[0] if names[0] in bundled_folders() else ""
    demo = create_pages(exhibits, home)
    try:
        address = {"server_name": options.host, "server_port": options.port}
        demo.launch(**address, prevent_thread_lock=True, **launch_options(home))
    except (ValueError, OSError) as error:  # somebody else took the port meanwhile
        raise SystemExit(refused(error)) from None
    serve(demo)


def serve(demo: Any) -> NoReturn:
    """Wait for Ctrl-C; then the program ends, whatever is being drawn: nobody would see what comes of it."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping", file=sys.stderr, flush=True)
        logging.disable()  # the server says that it interrupts its answers
        demo.server.config.timeout_graceful_shutdown = 0
        closing = threading.Thread(target=demo.close, kwargs={"verbose": False}, daemon=True)
        closing.start()  # temporary copies of uploads go
        with suppress(KeyboardInterrupt):
            closing.join(CLOSING_SECONDS)
    finally:
        os._exit(130)  # threads that compute can not be interrupted, and Python would wait for them


def refused(error: Exception) -> int:
    """Say what is wrong in one line; the exit code."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    print(f"error: {one_line(words or type(error).__name__)}", file=sys.stderr)
    return 2


def check_address(host: str, port: int | None) -> None:
    """Raise ``ValueError`` unless the program can listen there; without a port, at any of those that Gradio tries."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port {shown(port)} is outside 1 to 65535")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        where = f"{shown(host)}" + (f", port {port}" if port else "")
        reason = (error.strerror if isinstance(error, OSError) else "") or "no such address"
        raise ValueError(f"can not listen at {where}: {reason}; choose another --host or --port") from error


def exhibit(name: str, device: str | None, dtype: str | None, scores_file: Path | None = None) -> Exhibit:
    """A model by name or folder with all that lies beside it. Raises ``ValueError``."""
    from app.demo import Exhibit
    from app.lessons.chosen import FILE, Chosen
    from app.strips import bundled_fingerprint, read_strips
    from heatkv.models import find_folder, is_bundled, load
    from heatkv.models.bundled import calibration_prompts
    from heatkv.scores import HeadScores

    folder = find_folder(name)
    label, own = "bundled calibration", own_scores(folder)
    scores = own
    if scores_file:
        scores, label = HeadScores.load(scores_file), f"scores of {scores_file.name}"
    model = load(name, device, dtype)
    if scores is None:
        scores, label = calibrated(model), "calibration on the model's examples"
    scores.check_matches(model.geometry)
    fingerprint = bundled_fingerprint(name) if is_bundled(name) and own and not scores_file else ""
    comparison = read_comparison(folder / "comparison.json")
    chosen = Chosen.read(folder, fingerprint)
    if fingerprint and not chosen.counts and (folder / FILE).is_file():
        print(
            f"{folder / FILE} is of other weights or words and is passed over, as strips are: `python -m app.lessons "
            f"--model {name}`, then `python -m app.strips --model {name}`, make them anew", file=sys.stderr,
        )  # fmt: skip
    return Exhibit(
        model,
        scores,
        references_of(comparison),
        read_prompts(calibration_prompts()) if is_bundled(name) else [],
        label,
        comparison,
        read_strips(folder, fingerprint) if fingerprint else [],
        chosen,
    )


def own_scores(folder: Path) -> HeadScores | None:
    """The calibration in a model's folder, if there is one."""
    from heatkv.scores import HeadScores

    path = folder / "scores.safetensors"
    return HeadScores.load(path) if path.is_file() else None


def calibrated(model: GenerativeModel) -> HeadScores:
    """A calibration on the model's own examples, for a model that comes without one."""
    from heatkv.calibration import calibrate_steps

    prompts = model.examples
    if not prompts:
        raise ValueError(f"{model.id} has no calibration and no examples to make one from; pass --scores FILE")
    print(f"{model.id} has no calibration beside it (--scores FILE gives one): calibrating on its examples")
    scores = None
    for scores in calibrate_steps(model, prompts):
        print(f"calibrated {scores.count} of {len(prompts)}", flush=True)
    assert scores is not None
    return scores


def read_comparison(path: Path) -> dict[str, Any]:
    """A model's bundled comparison; empty where the file is absent or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def references_of(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The references of a comparison; none where there are none."""
    references = comparison.get("references")
    return references if isinstance(references, dict) else {}


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file, one a line; none where there is none."""
    from heatkv.cli.arguments import read_prompts as prompts_of

    try:
        return prompts_of(path)
    except (OSError, ValueError):
        return []


def _parser(program: str) -> OneLineParser:
    parser = OneLineParser(prog=program, description="HeatKV Explorer in the browser.")
    parser.add_argument("--model", help="a bundled model or a model folder (default: all bundled models)")
    parser.add_argument(
        "--scores", type=Path, help="calibration to open with (default: the model's own, or one made on its examples)"
    )
    parser.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="compute dtype (default: by device)")
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # a Space says where to listen
    parser.add_argument("--host", default=host, help=f"address to listen on (default: {host})")
    parser.add_argument("--port", type=int, default=None, help="port (default: 7860, or the next free one)")
    return parser


if __name__ == "__main__":
    main()
