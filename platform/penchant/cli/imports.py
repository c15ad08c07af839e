"""`penchant data import`: data sets from other formats, and from public ones as they were published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from penchant.data.importers.simulation import Simulation

import_app = typer.Typer(
    no_args_is_help=True,
    help="Make a data set from other formats, and from public data sets as they were published. SOURCE is a file or folder that "
    "was downloaded, or hub:OWNER/NAME, which is read through the package datasets. What each has, and its licence: "
    "docs/datasets.md.",
)
console = Console()

SourceArgument = Annotated[str, typer.Argument(help="File or folder as it was published, or hub:OWNER/NAME (@REVISION).")]
OutArgument = Annotated[Path, typer.Argument(help="Folder of the data set to make.")]
UsersOption = Annotated[int | None, typer.Option(help="Simulated seen users.", show_default=False)]
UnseenOption = Annotated[int | None, typer.Option(help="Simulated users kept out of training.", show_default=False)]
ProtocolOption = Annotated[
    str | None, typer.Option(help="`all`: every user has --comparisons. `avg`: 1 to 2n - 1, n on average.", show_default=False)
]
ComparisonsOption = Annotated[
    int | None, typer.Option(help="Train and valid comparisons of a user; by default the published number.", show_default=False)
]
TestOption = Annotated[int | None, typer.Option(help="Test comparisons of a user.", show_default=False)]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="Leave out texts that are too long by this model's tokenizer (a folder, or google/gemma-2b).", show_default=False
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Fixes everything that is drawn.", show_default=False)]


@import_app.command("trl")
def import_trl_command(
    source: Annotated[Path, typer.Argument(help="JSONL or Parquet in TRL's preference format.")],
    out: OutArgument,
    user_column: Annotated[str, typer.Option(help="Column that says whose choice it is.")] = "user_id",
) -> None:
    """Make a data set from TRL's preference format (plain or conversational) with a user column."""
    from penchant.data.importers.trl import import_trl

    _tell(import_trl(source, out, user_column=user_column))


@import_app.command("ultrafeedback")
def import_ultrafeedback_command(
    source: SourceArgument,
    out: OutArgument,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="The published pairs (ultrafeedback-binarized-preferences-cleaned); without them every two responses are a pair."
        ),
    ] = None,
    variant: Annotated[Literal["uf-p-2", "uf-p-4"], typer.Option(help="How many tastes there are.")] = "uf-p-4",
    common: Annotated[bool, typer.Option("--common", help="Keep pairs that all four tastes agree on; not published.")] = False,
    users: UsersOption = None,
    unseen_users: UnseenOption = None,
    protocol: ProtocolOption = None,
    comparisons: ComparisonsOption = None,
    test_comparisons: TestOption = None,
    tokenizer: TokenizerOption = None,
    seed: SeedOption = None,
) -> None:
    """UltraFeedback as UF-P-2 or UF-P-4, ALL or AVG (VPL, CoPL). Users are SIMULATED.

    Each user judges by one of GPT-4's ratings of a response: helpfulness, honesty, instruction following or truthfulness.

    Example (CoPL's UF-P-4-AVG):

        penchant data import ultrafeedback UltraFeedback/ uf-p-4-avg --pairs binarized/ --protocol avg

    On the hub they are hub:openbmb/UltraFeedback, and --pairs hub:argilla/ultrafeedback-binarized-preferences-cleaned.
    """
    from penchant.data.importers.ultrafeedback import import_ultrafeedback

    simulation = _simulation(users, unseen_users, protocol, comparisons, test_comparisons, tokenizer, seed)
    _tell(import_ultrafeedback(source, out, variant=variant, pairs=pairs, common=common, simulation=simulation))


@import_app.command("tldr")
def import_tldr_command(
    source: SourceArgument,
    out: OutArgument,
    setting: Annotated[
        Literal["workers", "length"], typer.Option(help="`workers`: the people who chose. `length`: CoPL's simulated users.")
    ] = "workers",
    users: UsersOption = None,
    unseen_users: UnseenOption = None,
    protocol: ProtocolOption = None,
    comparisons: ComparisonsOption = None,
    test_comparisons: TestOption = None,
    tokenizer: TokenizerOption = None,
    seed: SeedOption = None,
) -> None:
    """OpenAI's TL;DR comparisons: by worker, or of SIMULATED users who prefer short or long summaries (CoPL).

    The options from --users on are for `length`.

    Example:

        penchant data import tldr summarize-from-feedback/comparisons tldr
    """
    from penchant.data.importers.tldr import import_tldr

    simulation = _simulation(users, unseen_users, protocol, comparisons, test_comparisons, tokenizer, seed)
    _tell(import_tldr(source, out, setting=setting, simulation=simulation))


@import_app.command("personalllm")
def import_personalllm_command(
    source: SourceArgument,
    out: OutArgument,
    setting: Annotated[
        Literal["ten", "copl"], typer.Option(help="`ten`: PersonalLLM's reward models. `copl`: CoPL's four, on three responses.")
    ] = "ten",
    users: UsersOption = None,
    unseen_users: UnseenOption = None,
    protocol: ProtocolOption = None,
    comparisons: ComparisonsOption = None,
    test_comparisons: TestOption = None,
    tokenizer: TokenizerOption = None,
    seed: SeedOption = None,
) -> None:
    """PersonalLLM: SIMULATED users, each a mixture of reward models with Dirichlet weights.

    Example:

        penchant data import personalllm hub:namkoong-lab/PersonalLLM personalllm --setting copl
    """
    from penchant.data.importers.personalllm import import_personalllm

    simulation = _simulation(users, unseen_users, protocol, comparisons, test_comparisons, tokenizer, seed)
    _tell(import_personalllm(source, out, setting=setting, simulation=simulation))


@import_app.command("prism")
def import_prism_command(source: SourceArgument, out: OutArgument) -> None:
    """PRISM: people's own conversations; the chosen response against the lower-scored ones of its turn.

    Example:

        penchant data import prism prism-alignment/ prism
    """
    from penchant.data.importers.prism import import_prism

    _tell(import_prism(source, out))


@import_app.command("community-alignment")
def import_community_alignment_command(
    source: SourceArgument,
    out: OutArgument,
    language: Annotated[str | None, typer.Option(help="Only conversations in en, fr, hi, it or pt.")] = None,
) -> None:
    """Community Alignment: annotators of five countries; the preferred response against the others of its turn.

    Example:

        penchant data import community-alignment hub:facebook/community-alignment-dataset ca --language en
    """
    from penchant.data.importers.community_alignment import import_community_alignment

    _tell(import_community_alignment(source, out, language=language))


@import_app.command("hh-rlhf")
def import_hh_rlhf_command(
    source: SourceArgument,
    out: OutArgument,
    folders: Annotated[
        list[str] | None,
        typer.Option("--folder", help="Folder to read; again for more.", show_default="helpful-base, harmless-base"),
    ] = None,
    users: Annotated[int, typer.Option(min=0, help="SIMULATED users of each objective; 0: an objective is a user.")] = 0,
    seed: Annotated[int, typer.Option(help="Fixes who gets which comparison.")] = 0,
) -> None:
    """HH-RLHF by objective, helpful or harmless. Its files do not say who chose.

    Example:

        penchant data import hh-rlhf hh-rlhf/ hh --users 100
    """
    from penchant.data.importers.hh_rlhf import FOLDERS, import_hh_rlhf

    _tell(import_hh_rlhf(source, out, folders=folders or FOLDERS, users=users, seed=seed))


def _simulation(
    users: int | None,
    unseen_users: int | None,
    protocol: str | None,
    comparisons: int | None,
    test_comparisons: int | None,
    tokenizer: str | None,
    seed: int | None,
) -> Simulation:
    from penchant.config import load_settings
    from penchant.data.importers.simulation import Simulation

    asked: dict[str, Any] = {
        "users": users, "unseen_users": unseen_users, "protocol": protocol, "comparisons": comparisons,
        "test_comparisons": test_comparisons, "tokenizer": tokenizer, "seed": seed,
    }  # fmt: skip
    return load_settings(Simulation, given=asked)


def _tell(words: str) -> None:
    console.print(escape(words))
