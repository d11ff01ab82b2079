"""KuaiRand as downloaded, and the processed validation and test impressions of KuaiRand-Pure."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.public_sets.originals import columns, rows, write_files
from trainer.data.public_sets.kuairand import IMPRESSIONS, ITEMS, USERS
from trainer.data.public_sets.sets import convert
from trainer.errors import UserError

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,follow_user_num_range,"
    "fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{number}" for number in range(18))
    + "\n"
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
)
PURE: dict[str, str | bytes] = {
    "log_standard_4_08_to_4_21_pure.csv": LOG_HEADER
    + "0,3784,20220421,400,1650485801301,1,0,0,0,0,0,1,151024,104400,0,12,0,0,1\n"
    + "0,7,20220421,400,1650485801301,0,0,0,0,0,0,0,0,9000,0,0,0,0,1\n",
    "log_standard_4_22_to_5_08_pure.csv": LOG_HEADER
    + "5,7,20220508,2359,1652025599000,0,1,1,1,1,1,0,5000,9000,3,0,1,0,14\n",
    "log_random_4_22_to_5_08_pure.csv": LOG_HEADER
    + "5,3784,20220422,0,1650556800000,0,0,0,0,0,0,0,0,104400,0,0,0,1,2\n",
    "user_features_pure.csv": USER_HEADER
    + '0,full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,'
    + "1,1,29,949,1.0,0,0,14,135,6,3,0,0.0,1.0,0.0,,0.0,0.0\n",
    "video_features_basic_pure.csv": VIDEO_HEADER
    + '3784,441,NORMAL,2020-07-08,ShortImport,0.0,17200.0,720.0,1280.0,989206467,4.0,"12,65"\n'
    + "7,12,AD,,UNKNOWN,1.0,,720.0,1280.0,,,\n",
    "video_features_statistic_pure.csv": "video_id,counts,show_cnt\n3784,66,75.2\n",
}


def test_impressions_keep_all_feedback_and_features_hold_no_statistics(tmp_path: Path) -> None:
    source = write_files(tmp_path / "data", PURE)

    done = convert("kuairand", source, tmp_path / "logs")

    assert rows(tmp_path / "logs", "events-00000.parquet") == [
        (5, 3784, 1650556800000, 20220422, 0, "2", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 104400, 0, 0),
        (0, 3784, 1650485801301, 20220421, 400, "1", 0, 1, 0, 0, 0, 0, 0, 1, 0, 151024, 104400, 0, 12),
        (0, 7, 1650485801301, 20220421, 400, "1", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9000, 0, 0),
        (5, 7, 1652025599000, 20220508, 2359, "14", 0, 0, 1, 1, 1, 1, 1, 0, 1, 5000, 9000, 3, 0),
    ]
    assert IMPRESSIONS.names[7:15] == [
        "is_click",
        "is_like",
        "is_follow",
        "is_comment",
        "is_forward",
        "is_hate",
        "long_view",
        "is_profile_enter",
    ]
    assert rows(tmp_path / "logs", "items.parquet") == [
        (3784, "441", "NORMAL", "ShortImport", 18451, "989206467", "4", 17200.0, ["12", "65"]),
        (7, "12", "AD", "UNKNOWN", None, None, None, None, []),
    ]
    (user,) = pq.read_table(tmp_path / "logs" / "users.parquet").to_pylist()
    assert user["register_days"] == 799
    assert user["fans_user_num_range"] == "[100,1k)"
    assert (user["is_live_streamer"], user["onehot_feat4"], user["onehot_feat15"]) == ("-124", "1", None)
    assert len(user) == 31
    assert "video_features_statistic_pure.csv" not in done.source


def test_versions_must_not_be_mixed(tmp_path: Path) -> None:
    more: dict[str, str | bytes] = {"log_standard_4_08_to_4_21_27k_part1.csv": LOG_HEADER}
    source = write_files(tmp_path / "data", PURE | more)
    with pytest.raises(UserError, match="it mixes the versions 27k and pure"):
        convert("kuairand", source, tmp_path / "logs")


@pytest.mark.parametrize("pattern", ["log_random", "log_standard", "user_features", "video_features_basic"])
def test_a_missing_file_is_named(tmp_path: Path, pattern: str) -> None:
    files = {name: content for name, content in PURE.items() if not name.startswith(pattern)}
    source = write_files(tmp_path / "data", files)
    with pytest.raises(UserError, match=rf"the folder has no {pattern}_\*\.csv; it must hold log_standard_\*\.csv"):
        convert("kuairand", source, tmp_path / "logs")


def test_history_events_are_a_millisecond_apart_and_end_at_the_last_time(tmp_path: Path) -> None:
    source = tmp_path / "processed"
    source.mkdir()
    impression = dict.fromkeys(["user_id", "date", "hourmin", "play_time_ms", "duration_ms", "profile_stay_time"], 1)
    impression |= dict.fromkeys(["comment_stay_time", "tab", "is_rand", *IMPRESSIONS.names[7:15]], 0)
    impression |= {"video_id": 7, "time_ms": 2000}
    derived = {"watch_ratio": 0.5, "finish": 1, "author_id": 12, "tag": "12,65"}
    for name in ("val", "test"):
        pq.write_table(pa.Table.from_pylist([impression | derived]), source / f"{name}.parquet")
    histories = [
        {"user_id": 1, "history_len": 4, "last_time_ms": 1000, "watch_seq": [7, 9, 7], "like_seq": [9]},
        {"user_id": 2, "history_len": 0, "last_time_ms": 1100, "watch_seq": [], "like_seq": []},
        {"user_id": 3, "history_len": 0, "last_time_ms": None, "watch_seq": None, "like_seq": None},
        {"user_id": 4, "history_len": 1, "last_time_ms": 1200, "watch_seq": [8], "like_seq": []},
    ]
    pq.write_table(pa.Table.from_pylist(histories), source / "user_sequences.parquet")
    user = dict.fromkeys(USERS.names, 1) | {name: "x" for name in USERS.names if name.endswith(("_range", "degree"))}
    pq.write_table(pa.Table.from_pylist([user]), source / "user_features.parquet")
    write_files(source, {"video_features_basic_pure.csv": PURE["video_features_basic_pure.csv"]})

    convert("kuairand-valtest", source, tmp_path / "logs")

    assert rows(tmp_path / "logs", "history.parquet") == [(1, 7, 998), (1, 9, 999), (1, 7, 1000), (4, 8, 1200)]
    assert pq.read_schema(tmp_path / "logs" / "impressions-val.parquet").equals(IMPRESSIONS)


def test_the_real_processed_set(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "kuairand-pure-valtest"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    done = convert("kuairand-valtest", source, tmp_path / "logs")

    sequences = pq.read_table(source / "user_sequences.parquet")
    lengths = pc.list_value_length(sequences.column("watch_seq"))
    assert done.rows == {
        "impressions-val": 94_784,
        "impressions-test": 133_545,
        "history": pc.sum(lengths).as_py(),
        "items": 7_583,
        "users": 27_285,
    }
    for name, expected in (("val", "val.parquet"), ("test", "test.parquet")):
        actual = pq.read_table(tmp_path / "logs" / f"impressions-{name}.parquet")
        original = pq.read_table(source / expected)
        for ours_name, their_name in (("item_id", "video_id"), ("time", "time_ms"), ("is_click", "is_click")):
            assert actual.column(ours_name).cast(pa.int64()).equals(original.column(their_name).cast(pa.int64()))
    history = pq.read_table(tmp_path / "logs" / "history.parquet")
    assert history.column("item_id").combine_chunks().equals(sequences.column("watch_seq").combine_chunks().flatten())
    last = history.group_by("user_id").aggregate([("time", "max"), ("time", "min"), ("time", "count")])
    spans = pc.add(pc.subtract(last.column("time_max"), last.column("time_min")), 1)
    assert spans.equals(last.column("time_count"))  # every millisecond once
    assert pq.read_schema(tmp_path / "logs" / "items.parquet").equals(ITEMS)
    assert columns(tmp_path / "logs", "items.parquet")["tag"] == "list<element: string>"
