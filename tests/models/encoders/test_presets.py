"""docs/attention.md lists what each kind of encoder is made of: the table there is what the settings say."""

from pathlib import Path

from models.encoders.config import PRESETS, EncoderConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "attention.md"


def table_of_presets() -> str:
    """Return one row for each setting in which published encoders differ, one column for each of them."""
    kinds = list(PRESETS)
    flat = {}
    for kind in kinds:
        values = EncoderConfig.model_validate({"kind": kind}).model_dump(exclude={"kind"})
        attention = {f"attention.{name}": value for name, value in values.pop("attention").items()}
        flat[kind] = {**values, **attention}
    lines = ["| setting | " + " | ".join(f"`{kind}`" for kind in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for setting in flat[kinds[0]]:
        row = [flat[kind][setting] for kind in kinds]
        if any(value != row[0] for value in row):
            lines.append(f"| `{setting}` | " + " | ".join(_text(value) for value in row) + " |")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None or value is False:
        return "none" if value is None else "no"
    return "yes" if value is True else str(value)


def test_the_page_lists_the_settings_of_presets():
    assert table_of_presets() in PAGE.read_text(encoding="utf-8")
