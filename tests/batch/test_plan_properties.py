from hypothesis import given, settings
from hypothesis import strategies as st

from dynenc.batch.plan import InputFile, OutputRule, plan, select
from dynenc.errors import UsageError

PART = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda part: part not in (".", "..")
)
RELATIVE = st.lists(PART, min_size=1, max_size=3).map("/".join)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(RELATIVE, unique=True, max_size=8), st.integers(1, 4) | st.none())
def test_every_input_has_one_output_of_its_own_or_the_plan_is_refused(names, shard_size):
    files, ignored = select([InputFile(f"in/{n}", n, True) for n in names], frozenset())
    assert (len(files), ignored) == (len(names), [])
    rule = OutputRule("out", ".lat", shard_size=shard_size)
    try:
        jobs = plan(files, rule)
    except UsageError:
        return
    sources = [source for job in jobs for source, _ in job.members or ((job.source, ""),)]
    assert sources == sorted(f"in/{n}" for n in names)
    targets = [job.target for job in jobs]
    assert len(set(targets)) == len(targets)
    assert all(target.startswith("out/") for target in targets)
    assert plan(files, rule) == jobs
