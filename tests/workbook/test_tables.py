"""Tables of settings."""

import pytest

from vidseg_core.settings import STAGES, ContextSettings, Settings
from vidseg_core.workbook.tables import field_docs, settings_table


def test_a_table_has_defaults_and_reasons():
    lines = settings_table(ContextSettings).data.splitlines()
    assert "| `num_clusters` | `20` | K. Paper: 20. |" in lines
    assert any(line.startswith('| `memory` | `"anchored"` | What the context remembers') for line in lines)
    assert all(line.replace(r"\|", "").count("|") == 4 for line in lines)


@pytest.mark.parametrize("kind", STAGES.values())
def test_every_setting_of_a_stage_has_a_reason(kind):
    assert set(field_docs(kind)) == set(kind.__dataclass_fields__)


def test_settings_made_of_others_are_left_to_their_own_tables():
    assert [line.split("`")[1] for line in settings_table(Settings).data.splitlines()[2:]] == ["window", "working_size", "seed"]
