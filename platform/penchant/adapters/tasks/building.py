"""From a user's history to what the base model is given: questions, and past items as training examples.

A prompt sees only what came before it: the retrieved items and the profile of a training item come from the items before
that item, those of a query from the items before the query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from penchant.adapters.examples import Example
from penchant.adapters.profiles import Profiler, TemplateProfiler, Writer, WrittenProfiler
from penchant.adapters.retrieval import Bm25Retriever, DenseRetriever, Ranking, Retriever
from penchant.adapters.tasks.config import PromptSettings
from penchant.adapters.tasks.prompts import PROMPTS, cut
from penchant.backbone.features import FeatureExtractor
from penchant.data.lamp import Item, LampTask, LampUser, Query
from penchant.errors import ConfigError
from penchant.storage import default_cache_folder


class ExampleBuilder:
    """Makes the examples of one task in one variant.

    Args:
        task: One of the seven.
        settings: What of the past a prompt shows.
        retriever: Needed where `settings.retrieved` is not 0.
        profiler: Needed where `settings.profile` is not `none`.

    Raises:
        ConfigError: One of them is missing, or a history field is none of the task's.
    """

    def __init__(
        self,
        task: LampTask,
        settings: PromptSettings | None = None,
        *,
        retriever: Retriever | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self.task, self.settings = task, settings or PromptSettings()
        self.prompts = PROMPTS[task.name]
        self.retriever, self.profiler = retriever, profiler
        self.prompts.check_fields(self.settings.history_fields)
        if self.settings.retrieved and retriever is None:
            raise ConfigError("There is no retriever.", where="retrieved", fix="Give one, or set retrieved=0.")
        if self.settings.profile != "none" and profiler is None:
            raise ConfigError("There is no profiler.", where="profile", fix="Give one, or set profile=none.")

    def personal(self, user: LampUser) -> list[Example]:
        """A user's own items as training examples, oldest first: what this user's adapter is fitted on, and nothing else.

        Items whose label is none of the task's are left out.
        """
        ranking = self._ranking(user, [self._item_about(item) for item in user.items])
        examples = []
        for position, item in enumerate(user.items):
            target = item.fields[self.prompts.item_target(item)].strip()
            if self.task.kind != "generation" and self.task.answer != "citation" and target not in self.task.labels:
                continue
            question = self.prompts.item_question(item, max_words=self.settings.subject_words)
            prompt = self._with_past(user, question, self._item_about(item), position, horizon(position), ranking)
            examples.append(Example(prompt, target))
        return examples

    def queries(self, user: LampUser) -> list[Example]:
        """The questions about a user, in the order of `user.queries`, with their answers."""
        ranking = self._ranking(user, [self._query_about(query) for query in user.queries])
        examples = []
        for query in user.queries:
            question = self.prompts.question(query, max_words=self.settings.subject_words)
            prompt = self._with_past(user, question, self._query_about(query), query.seen, query.seen, ranking)
            examples.append(Example(prompt, query.gold))
        return examples

    def personal_of(self, users: Mapping[str, LampUser]) -> dict[str, list[Example]]:
        """`personal` of each user, by user id."""
        about = [self._item_about(item) for user in users.values() for item in user.items]
        self._prepare(users, about, {(user, horizon(at)) for user, held in users.items() for at in range(len(held.items))})
        return {user_id: self.personal(user) for user_id, user in users.items()}

    def queries_of(self, users: Mapping[str, LampUser]) -> dict[str, list[Example]]:
        """`queries` of each user, by user id: of the others, what the task adapter is fitted on."""
        about = [self._query_about(query) for user in users.values() for query in user.queries]
        self._prepare(users, about, {(user, query.seen) for user, held in users.items() for query in held.queries})
        return {user_id: self.queries(user) for user_id, user in users.items()}

    def _prepare(self, users: Mapping[str, LampUser], about: Sequence[str], profiled: set[tuple[str, int]]) -> None:
        """Has the models behind retrieval and profiles read and write for all users at once."""
        if self.retriever is not None and self.settings.retrieved:
            items = [self._shown(item) for user in users.values() for item in user.items]
            self.retriever.prepare([*items, *filter(None, about)])
        if self.profiler is not None and self.settings.profile != "none":
            wanted = sorted((user, count) for user, count in profiled if count)
            self.profiler.prepare([(user, users[user].items[:count]) for user, count in wanted])

    def _with_past(self, user: LampUser, question: str, about: str, before: int, profiled: int, ranking: Ranking | None) -> str:
        parts = []
        if self.profiler is not None and self.settings.profile != "none" and profiled:
            parts.append(self.profiler.profile(user.user_id, user.items[:profiled]))
        if ranking is not None and about:
            found = ranking.top(about, before=before, k=self.settings.retrieved)
            # The best stands next to the question: what does not fit a model's window is cut from the start.
            parts += [self._shown(user.items[position]) for position in reversed(found)]
        return "\n".join([*parts, question])

    def _ranking(self, user: LampUser, about: Sequence[str]) -> Ranking | None:
        if self.retriever is None or not self.settings.retrieved:
            return None
        shown = [self._shown(item) for item in user.items]
        self.retriever.prepare([*shown, *filter(None, about)])
        return self.retriever.rank(shown)

    def _item_about(self, item: Item) -> str:
        return self._about(item.fields[name] for name in self.prompts.item_subject(item))

    def _query_about(self, query: Query) -> str:
        return self._about(query.fields[name] for name in self.prompts.subject)

    def _about(self, texts: Iterable[str]) -> str:
        return cut(" ".join(texts), self.settings.subject_words)

    def _shown(self, item: Item) -> str:
        return self.prompts.shown(item, fields=self.settings.history_fields, max_words=self.settings.history_words)


def make_builder(
    task: LampTask,
    settings: PromptSettings,
    *,
    writer: Writer | None = None,
    encoder: FeatureExtractor | None = None,
    folder: Path | None = None,
) -> ExampleBuilder:
    """The builder that the settings ask for.

    Args:
        task: One of the seven.
        settings: What of the past a prompt shows.
        writer: Writes profiles, where they are to be written.
        encoder: The sentence encoder of dense retrieval; by default MiniLM.
        folder: Where written profiles are kept; by default in the cache folder.

    Raises:
        ConfigError: Profiles are to be written and there is no writer, or a history field is none of the task's.
        BackboneError: The sentence encoder is not there.
    """
    retriever: Retriever | None = None
    if settings.retrieved:
        retriever = Bm25Retriever() if settings.retriever == "bm25" else DenseRetriever(encoder)
    profiler: Profiler | None = None
    if settings.profile == "template":
        profiler = TemplateProfiler(task)
    elif settings.profile == "written":
        if writer is None:
            raise ConfigError("There is nobody to write profiles.", where="profile", fix="Give a writer, or profile=template.")
        profiler = WrittenProfiler(task, writer, folder or default_cache_folder() / "profiles")
    return ExampleBuilder(task, settings, retriever=retriever, profiler=profiler)


def horizon(position: int) -> int:
    """How many items the profile of a training item is of: the largest power of two that is not more than those before it.

    A profile of all the items before each item would be as many profiles as items, each written by a model.
    """
    return 1 << (position.bit_length() - 1) if position else 0
