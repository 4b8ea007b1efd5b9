from datablame.world.registration import Deviation, content_hash, differences


def test_a_hash_covers_everything_but_itself() -> None:
    content = {"b": 1, "a": [1, 2]}
    assert content_hash(content) == content_hash({"a": [1, 2], "b": 1, "sha256": "x"})
    assert content_hash(content) != content_hash({**content, "b": 2})


def test_differences_are_found_key_by_key_and_lists_are_wholes() -> None:
    registered = {"a": {"b": 1, "c": [1, 2]}, "gone": "x" * 200, "none": None}
    actual = {"a": {"b": 1, "c": [1, 3]}, "new": 5}
    found = differences(registered, actual)
    assert found == (
        Deviation("a.c", [1, 2], [1, 3]),
        Deviation("gone", "x" * 200, "(absent)"),
        Deviation("new", "(absent)", 5),
    )
    assert found[0].sentence() == "a.c: registered [1, 2], in this run [1, 3]"
    assert found[1].sentence() == f"gone: registered {'x' * 120}..., in this run (absent)"
    assert differences(registered, registered) == ()
