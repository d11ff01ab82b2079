"""Docstrings of functions say what a function does: most begin with a verb, none with a word that begins a noun clause."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shoal", "cluster", "trainer", "models", "sharding")
LEAST_SHARE_OF_VERBS = 0.9

# No docstring of a function begins with one of these.
ARTICLES = frozenset(["The", "A", "An"])
REFUSED = ARTICLES | {"What", "Of", "Whose", "Whether", "Which", "Where", "Who", "When", "Why", "How", "By"}
# A property is a value: its docstring may begin with an article, as in "The folder of checkpoints."
REFUSED_FOR_PROPERTIES = REFUSED - ARTICLES

# Verbs that docstrings of functions may begin with, in the imperative. Add what is missing.
VERB_LIST = """
Abort Accept Accumulate Acquire Act Activate Adapt Add Adjust Admit Advance Aggregate Align Allocate Allow Announce Answer
Append Apply Approximate Arrange Ask Assemble Assert Assign Attach Attend Attribute Average Avoid Backpropagate Balance Begin
Bin Bind Block Bound Break Broadcast Bucket Build Bundle Cache Calculate Calibrate Call Cancel Cap Carry Cast Catch Center
Change Check Choose Chunk Claim Clamp Classify Clean Clear Clip Clone Close Collapse Collate Collect Color Combine Commit
Compare Compile Complete Compose Compress Compute Concatenate Configure Confirm Connect Consider Construct Consume Continue
Convert Copy Correct Correlate Count Cover Create Cross Cut Deal Decay Decide Declare Decode Decompress Dedent Deduplicate
Define Delay Delete Deliver Derive Describe Deserialize Detach Detect Determine Diagnose Differentiate Disable Discard
Disconnect Dispatch Display Distribute Divide Do Double Download Drain Draw Drive Drop Dump Duplicate Embed Emit Empty Enable
Encode End Enforce Ensure Enter Enumerate Erase Escape Estimate Evaluate Evict Exchange Exclude Execute Exit Expand Expect
Expire Explain Export Expose Express Extend Extract Fail Fall Feed Fetch Fill Filter Finalize Find Finish Fit Fix Flag Flatten
Flip Float Flush Fold Follow Force Forget Form Format Forward Freeze Fuse Gather Generate Get Give Go Grant Group Grow Guard
Guess Halve Handle Hash Help Hide Hold Identify Ignore Import Include Increase Increment Indent Index Infer Inform Initialize
Inject Insert Inspect Install Interleave Interpolate Interpret Interrupt Intersect Invert Invoke Iterate Join Judge Keep Kill
Know Label Launch Lay Leave Let Limit Link List Listen Load Locate Lock Log Look Loop Lower Make Manage Map Mark Mask Match
Materialize Measure Merge Migrate Minimize Mirror Mix Mock Modify Monitor Move Multiply Name Narrow Negate Normalize Note Notify
Number Observe Obtain Offer Open Optimize Order Override Overwrite Pack Pad Pair Parse Partition Pass Patch Pause Perform Permit
Permute Persist Pick Pin Place Plan Plant Plot Point Poll Pool Pop Populate Postpone Predict Prefer Prefix Prepare Present
Preserve Prevent Print Probe Process Produce Profile Project Promote Propagate Propose Protect Prove Provide Prune Publish Pull
Push Put Quantize Query Queue Quote Raise Randomize Rank Reach React Read Rebuild Receive Recommend Recompute Record Recover
Recreate Redirect Reduce Refer Refresh Refuse Register Reject Release Reload Remember Remove Rename Render Repair Repeat Replace
Replay Report Represent Request Require Reread Rescale Reserve Reset Reshape Reshard Resolve Respond Restart Restore Restrict
Resume Retrieve Retry Return Reuse Reverse Revert Rewrite Roll Rotate Round Route Run Sample Satisfy Save Scale Scan Scatter
Schedule Score Search Seed Seek Select Send Separate Serialize Serve Set Shape Shard Share Shift Show Shrink Shuffle Shut Sign
Simplify Simulate Skip Slice Snapshot Solve Sort Spawn Specify Split Spread Stack Stage Stamp Standardize Start Stop Store
Stream Stretch Stringify Strip Stub Submit Substitute Subtract Sum Summarize Supply Support Suppress Swap Switch Synchronize
Tabulate Tag Take Tell Terminate Test Throw Tie Tile Time Toggle Touch Trace Track Train Transfer Transform Translate Transpose
Traverse Treat Trigger Trim Truncate Try Turn Undo Unflatten Unlink Unlock Unpack Unpickle Unwrap Update Upload Use Validate
Verify View Visit Wait Walk Warm Warn Watch Weigh Weight Widen Wind Wrap Write Yield Zero Zip
"""
VERBS = frozenset(VERB_LIST.split())


@dataclass(frozen=True)
class Docstring:
    """The docstring of a function of a package."""

    package: str
    # File and line, as in "cluster/cli/app.py:12".
    place: str
    is_property: bool
    text: str

    @property
    def first_word(self) -> str:
        """The word that it begins with, without punctuation."""
        return self.text.split()[0].rstrip(".,;:") if self.text.strip() else ""

    @property
    def is_refused(self) -> bool:
        """True if it begins with a word that begins a noun clause."""
        return self.first_word in (REFUSED_FOR_PROPERTIES if self.is_property else REFUSED)

    @property
    def line(self) -> str:
        """The place and the beginning, as messages show it."""
        return f"{self.place}: {self.text.splitlines()[0][:80]}"


def docstrings_in(source: str, package: str, path: str) -> Iterator[Docstring]:
    """Yield the docstrings of all functions and methods of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if text:
                is_property = bool(decorators & {"property", "cached_property"})
                yield Docstring(package, f"{path}:{node.lineno}", is_property, text)


def docstrings(package: str) -> list[Docstring]:
    """Return the docstrings of all functions of a package."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return [
        docstring
        for path in paths
        for docstring in docstrings_in(path.read_text(encoding="utf-8"), package, str(path.relative_to(ROOT)))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_begins_with_a_noun_clause(package: str) -> None:
    refused = [docstring.line for docstring in docstrings(package) if docstring.is_refused]
    assert not refused, "\n".join(["begin with a verb, such as Return:", *refused])


def without_verb(package: str) -> tuple[float, list[str]]:
    """Return the share of a package's functions with a docstring that begins with a verb, and the lines of all others."""
    functions = [docstring for docstring in docstrings(package) if not docstring.is_property]
    others = [docstring.line for docstring in functions if docstring.first_word not in VERBS]
    return 1.0 - len(others) / len(functions), others


@pytest.mark.parametrize("package", PACKAGES)
def test_most_docstrings_begin_with_a_verb(package: str) -> None:
    share, others = without_verb(package)
    assert share >= LEAST_SHARE_OF_VERBS, "\n".join(
        [f"{share:.0%} begin with a verb; a verb that is not known yet goes into VERBS:", *others]
    )


EXAMPLE = '''
class Thing:
    @property
    def folder(self):
        """The folder."""

    @property
    def is_open(self):
        """Whether it is open."""

    def close(self):
        """Close it."""

async def size():
    """The size."""

def name():
    """Return: the name."""

def silent(): ...
'''


def test_docstrings_are_judged_by_their_first_word() -> None:
    judged = {docstring.text: docstring.is_refused for docstring in docstrings_in(EXAMPLE, "package", "file.py")}
    assert judged == {
        "The folder.": False,
        "Whether it is open.": True,
        "Close it.": False,
        "The size.": True,
        "Return: the name.": False,
    }
    words = {docstring.first_word for docstring in docstrings_in(EXAMPLE, "package", "file.py")}
    assert words & VERBS == {"Close", "Return"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_of_a_class_or_module_begins_with_a_noun_clause(package: str) -> None:
    refused = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
            words = (ast.get_docstring(node) or "").split()
            if words and words[0].rstrip(".,;:") in REFUSED_FOR_PROPERTIES:
                refused.append(f"{path.relative_to(ROOT)}: {' '.join(words[:8])}")
    assert not refused, "\n".join(["begin with a noun:", *refused])
