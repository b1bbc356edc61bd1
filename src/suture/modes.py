"""The catalogue of known ways in which adapters go wrong: F01 to F62, each with what stands against it.

Which rules find a mode is said in the rules (`Rule.modes`). Here stand its title, the tests of the guarantees that make
it impossible in Suture's own merges and runs, and a reason where a rule or a guarantee cannot reach.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One known way in which adapters go wrong. The code is stable."""

    code: str
    title: str
    tests: tuple[str, ...] = ()  # file::function, below tests/
    reason: str = ""


FAMILIES = "parity/test_families.py::"
METHODS = "parity/test_methods.py::"
SETTLE = "planning/test_settle.py::"
PIPELINE = "test_pipeline.py::"
CALLBACK = "training/test_callback.py::"
UNMERGED = f"{METHODS}test_merged_is_unmerged"
MAPPED = f"{FAMILIES}test_experts_and_attention"
UNTOUCHED = f"{PIPELINE}test_what_the_adapter_does_not_name_is_byte_identical"
NEVER_WRONG = f"{PIPELINE}test_a_file_that_is_wrong_after_writing_is_never_published"

MODES: tuple[Mode, ...] = (
    Mode(
        "F01",
        "Embedding and head trained in full, while the config goes on saying that they are one",
        (f"{FAMILIES}test_tied_ends_are_trained_apart", f"{PIPELINE}test_ties_are_told_before_and_written_after"),
    ),
    Mode("F02", "A LoRA on one end of a tied pair, merged into both", (f"{SETTLE}test_ends_that_differ_come_apart",)),
    Mode(
        "F03",
        "A LoRA that ties both ends, merged twice into the tensor that they share",
        (f"{SETTLE}test_ends_with_the_same_values_stay_one_tensor", UNMERGED),
    ),
    Mode(
        "F04",
        "Names that lead to no tensor of the base: the merge changes nothing",
        (f"{PIPELINE}test_keys_of_another_level_are_refused_with_the_rewriting",),
    ),
    Mode("F05", "Tensors in the file that the config does not name, dropped on loading"),
    Mode(
        "F06",
        "Another base with the same shapes",
        reason="Without a ledger, a saved copy of a base matrix or DoRA magnitudes, nothing in the files tells two "
        "bases of the same names and shapes apart; then only the name is compared.",
    ),
    Mode(
        "F07",
        "An adapter of a second training stage, put on the base of the first",
        reason="Only what trainers write beside an adapter, a ledger or saved base matrices can tell.",
    ),
    Mode(
        "F08",
        "Training that goes on wraps the model again and throws the first adapter away",
        ("training/test_continue.py::test_training_is_never_lost",),
    ),
    Mode("F09", "A loaded adapter that is frozen, or something else that trains in its place"),
    Mode("F10", "An adapter that training never reached"),
    Mode("F11", "Matrices trained in full that are lost when saving, merging or converting", (UNMERGED,)),
    Mode(
        "F12",
        "Rows of new tokens that are not saved, are zero, or are drawn anew",
        (f"{CALLBACK}test_new_rows_that_peft_would_not_save_are_told_before_the_first_step", UNMERGED),
    ),
    Mode("F13", "Updates of experts dropped, because memory holds them in one tensor and files one by one", (MAPPED,)),
    Mode(
        "F14", "A merge into 4-bit weights, where rounding swallows the update", reason="Quantised bases are refused."
    ),
    Mode(
        "F15",
        "Two ways to pack the experts in lora_B",
        (
            "methods/test_expert_lora.py::test_out_in_experts_as_peft_reads_them",
            "methods/test_expert_lora.py::test_expert_major_packing_of_b",
        ),
        "A file without the marker cannot be told apart; it is read as PEFT writes it, and a file that names a base of "
        "Unsloth gets a warning.",
    ),
    Mode(
        "F16",
        "Axes of expert updates that were exchanged between two versions of PEFT",
        ("methods/test_expert_lora.py::test_axes_of_an_old_file_are_told_by_its_shapes",),
    ),
    Mode("F17", "Quantised weights changed without their scales", reason="Quantised bases are refused."),
    Mode("F18", "Initialisations that changed the base, merged as if they had not"),
    Mode(
        "F19",
        "rsLoRA's scale read as LoRA's",
        (UNMERGED,),
        "A config that lost use_rslora, or whose alpha was edited, looks like another healthy one: only a ledger, or "
        "updates of an unlikely size, give it away.",
    ),
    Mode(
        "F20",
        "Patterns of ranks and alphas that are ignored, or read in another order",
        (UNMERGED,),
        "A lost alpha_pattern leaves no trace in the tensors; a lost rank_pattern does (M304).",
    ),
    Mode(
        "F21",
        "Empty adapters and tensors, saved by one of several processes",
        ("training/test_readback.py::test_an_empty_tensor_as_sharded_trainers_leave_it",),
    ),
    Mode("F22", "Prefixes of wrappers and names of adapters left in the keys"),
    Mode(
        "F23",
        "A merged model that is the base, or an older merge",
        (
            f"{PIPELINE}test_a_folder_with_files_is_left_alone",
            f"{PIPELINE}test_a_merge_by_hand_that_forgot_a_layer_is_found",
            NEVER_WRONG,
        ),
    ),
    Mode(
        "F24",
        "A merged model with its adapter still beside it, applied a second time",
        ("verification/test_structure.py::test_an_adapter_beside_the_weights",),
    ),
    Mode("F25", "Layers whose weight the model uses directly, so that the adapter is passed by in training"),
    Mode(
        "F26",
        "An adapter trained on a 4-bit base, merged onto the 16-bit one",
        ("test_dequantizing.py::test_onto_dequantized_is_the_merge_onto_the_quantised_model",),
    ),
    Mode(
        "F27",
        "LoRA on embeddings that a merge does not read",
        (UNMERGED, "methods/test_embedding_lora.py::test_rows_are_tokens"),
    ),
    Mode(
        "F28",
        "Trained tokens added where they should replace; other tokens at the tied end",
        (
            "methods/test_trainable_tokens.py::test_named_rows_are_replaced_and_no_others",
            f"{SETTLE}test_trained_tokens_of_the_input_embedding_reach_the_head",
        ),
    ),
    Mode(
        "F29",
        "DoRA magnitudes that are lost, permuted, or used with another norm",
        (UNMERGED, "methods/test_dora.py::test_every_output_has_the_length_m"),
        "Magnitudes whose order was permuted are numbers like any others.",
    ),
    Mode(
        "F30", "Biases that are lost", (UNMERGED, "methods/test_lora_bias.py::test_the_bias_grows_by_the_scaled_vector")
    ),
    Mode("F31", "Activated LoRA merged as if it were always on"),
    Mode("F32", "Layers that share weights in training, merged into one"),
    Mode(
        "F33",
        "Transposed layers whose matrices are square",
        (
            "methods/test_lora.py::test_square_weight_of_unknown_class_is_refused_when_the_config_says_transposed",
            UNMERGED,
        ),
    ),
    Mode(
        "F34",
        "A padded vocabulary cut to the number of tokens",
        ("methods/test_lora.py::test_padding_rows_of_a_head_stay_as_they_are",),
    ),
    Mode("F35", "Heads, projectors and value functions left behind in other files"),
    Mode("F36", "Tensors that the model class does not know, gone after the merge", (UNTOUCHED,)),
    Mode("F37", "Modules that were renamed between versions of Transformers", (f"{FAMILIES}test_all_linear_layers",)),
    Mode(
        "F38",
        "Adapters of single experts on models that now join them",
        (MAPPED, f"{FAMILIES}test_one_of_the_expert_parameters"),
    ),
    Mode(
        "F39",
        "Updates that are lost in rounding",
        (
            "parity/test_bits.py::test_bf16_is_float32_rounded_once",
            "test_requantizing.py::test_an_update_that_would_be_erased_is_refused",
        ),
    ),
    Mode("F40", "NaN and infinity, merged"),
    Mode("F41", "A quantisation config that was left in, or taken out, wrongly"),
    Mode(
        "F42",
        "Stale shards, wrong indices, half-written folders",
        (
            "crash/test_crash.py::test_a_killed_merge_leaves_no_output_and_is_continued",
            "execute/test_publish.py::test_a_good_verdict_lets_the_output_appear",
        ),
    ),
    Mode(
        "F43",
        "Several adapters in a folder, of which one is silently taken",
        (
            "formats/adapters/test_peft.py::test_of_several_adapters_none_is_guessed",
            f"{METHODS}test_one_of_several_adapters",
        ),
    ),
    Mode("F44", "Adapters that are called like a module"),
    Mode(
        "F45",
        "Joined or split projections, and other orders of rotary dimensions",
        reason="Shapes tell joined from split (M303). Rows in another order are numbers like any others: the adapter "
        "must be converted by the tool that wrote it.",
    ),
    Mode(
        "F46",
        "Adapters of other formats, read as PEFT's",
        (
            "formats/adapters/test_peft.py::test_a_config_of_another_tool_is_recognised",
            "formats/adapters/test_peft.py::test_files_of_another_tool_are_recognised",
        ),
        "Adapters of MLX, torchtune, LitGPT, diffusers and llama.cpp are recognised and refused.",
    ),
    Mode(
        "F47",
        "Tokenizer, chat template and generation settings that do not come along",
        (f"{PIPELINE}test_files_beside_the_weights_are_kept", f"{PIPELINE}test_the_adapters_chat_template_is_carried"),
    ),
    Mode(
        "F48",
        "A base that cannot be found under the name that the adapter gives",
        ("formats/adapters/test_peft.py::test_missing_weights_are_an_error_unless_nobody_needs_them",),
        "The base is always named by the user, so the pointer is compared and never followed in a merge.",
    ),
    Mode("F49", "Conversions of PiSSA adapters that drop all other tensors"),
    Mode("F50", "Settings of a newer PEFT that are passed over"),
    Mode("F51", "Target patterns that match more, less or something else than was meant"),
    Mode(
        "F52",
        "Training that resumes without its optimiser, or into other parameters",
        (
            "training/test_resume.py::test_stop_and_resume_gives_the_same_bytes",
            "training/test_resume.py::test_optimiser_state_goes_where_its_name_is",
        ),
    ),
    Mode("F53", "Adapters on embeddings that the model scales", (f"{FAMILIES}test_tied_ends_are_trained_apart",)),
    Mode(
        "F54",
        "Several adapters combined with the wrong weights",
        reason="Suture merges one adapter at a time and has no command that combines them.",
    ),
    Mode("F55", "Servers that pass over parts of an adapter"),
    Mode(
        "F56",
        "A GGUF or Ollama model with another base or template than in training",
        reason="Nothing of a GGUF file is read yet. Convert the merged folder, which has the right template beside it.",
    ),
    Mode(
        "F57",
        "Merged models of another type, and twice the size",
        (f"{PIPELINE}test_another_dtype_is_a_choice", UNTOUCHED),
    ),
    Mode(
        "F58",
        "Tensors that share memory, dropped while saving",
        (
            f"{CALLBACK}test_a_save_that_loses_a_tensor_stops_the_run",
            "training/test_readback.py::test_a_missing_tensor",
        ),
    ),
    Mode(
        "F59",
        "Warnings about ties that do not come for patterns and dotted names",
        ("training/test_audit.py::test_ends_that_train_apart_are_told_but_are_no_difference",),
    ),
    Mode(
        "F60",
        "DoRA adapters merged one after the other, each with the norm of the result",
        reason="Suture merges one adapter at a time, onto the base that is given; a second is trained on the result.",
    ),
    Mode(
        "F61",
        "A scale that is not found and becomes zero",
        ("methods/test_lora.py::test_rank_must_be_the_configs", NEVER_WRONG),
    ),
    Mode(
        "F62",
        "Messages that say all is well",
        (NEVER_WRONG, "execute/test_publish.py::test_a_bad_verdict_removes_it_and_says_why"),
    ),
)
