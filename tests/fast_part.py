"""How much of the long tests `make test` runs, so that it takes minutes: the other cases are slow ones.

The number is that of the first cases of a test's parameters; 0 leaves the test to `make test-slow`. What a
test asks of methods, places or inputs of one kind is asked of a few of them here.
"""

FIRST_CASES = {
    "arithmetic/test_random_bits.py": {
        "test_numbers_are_those_of_jax": 3,
    },
    "arithmetic/test_rowwise.py": {
        "test_examples_that_never_meet_are_seen_to_be_apart": 8,
    },
    "batches/test_accumulation.py": {
        "test_accumulated_is_the_big_batch": 2,
        "test_each_pass_slice_and_draw_has_its_own_key": 0,
        "test_weights_of_both_signs_that_cancel_in_a_slice_count": 3,
    },
    "clients/test_clients.py": {
        "test_program_with_sam_is_the_one_with_the_step_written_by_hand": 2,
        "test_program_without_a_method_trains_and_few_lines_change": 4,
    },
    "composition/test_composition.py": {
        "test_all_behind_it_do_with_the_descent_as_by_hand": 1,
        "test_wrappers_around_it_hand_the_descent_to_the_base_optimizer": 1,
    },
    "composition/test_hyperparameters.py": {
        "test_schedule_is_read_at_every_step": 1,
    },
    "composition/test_line_searches.py": {
        "test_lbfgs_behind_it_takes_its_curvature_from_the_descents": 1,
    },
    "composition/test_optax_bar.py": {
        "test_explicit_sharding_types_of_the_state_are_stable": 2,
    },
    "composition/test_parts_of_the_parameters.py": {
        "test_ascent_of_a_part_perturbs_it_alone_and_descends_on_all": 4,
        "test_what_moves_before_its_first_gradient_moves_the_visible_part_alone": 4,
    },
    "devices/test_collectives.py": {
        "test_draws_send_few_numbers": 4,
    },
    "devices/test_devices.py": {
        "test_norms_of_single_examples_stay_where_the_examples_are": 0,
        "test_sharded_batch_gives_the_trajectory_of_one_device": 2,
        "test_state_keeps_the_sharding_of_sharded_parameters": 1,
    },
    "devices/test_per_device.py": {
        "test_gradients_are_all_reduced_once": 2,
        "test_per_device_is_per_microbatch_with_a_slice_a_device": 1,
    },
    "devices/test_placed_per_device.py": {
        "test_a_loss_that_places_its_arrays_has_the_numbers_of_each_device": 4,
        "test_methods_that_choose_examples_are_given_such_losses_too": 1,
    },
    "devices/test_pmap.py": {
        "test_with_the_mean_in_its_gradient_function_it_is_the_step_of_the_whole_batch": 1,
    },
    "devices/test_processes.py": {
        "test_two_processes_decide_alike_and_give_the_numbers_of_one": 0,
    },
    "devices/test_shard_map.py": {
        "test_a_fisher_mask_is_that_of_the_first_examples_of_all_devices": 1,
        "test_each_example_has_its_own_loss_gradient_and_norm": 2,
        "test_every_device_may_train_parameters_of_its_own": 1,
    },
    "devices/test_sharded_parameters.py": {
        "test_split_parameters_stay_split_and_norms_are_global": 1,
    },
    "experiments/test_checkpoints.py": {
        "test_damage_to_any_file_of_a_checkpoint_costs_at_most_that_checkpoint": 0,
    },
    "experiments/test_compile_only.py": {
        "test_methods_with_another_first_epoch_have_two_programs_of_steps": 0,
        "test_the_program_is_the_one_that_the_run_executes": 0,
    },
    "experiments/test_compositions.py": {
        "test_the_compositions_of_the_experiments_are_their_parts": 0,
    },
    "experiments/test_data.py": {
        "test_ausam_hears_which_examples_it_sees": 0,
        "test_tfds_set_by_name": 0,
    },
    "experiments/test_evidence.py": {
        "test_a_task_is_searched_tested_timed_and_goes_on_where_it_was": 0,
    },
    "experiments/test_grid.py": {
        "test_programs_are_shared_by_seeds_and_radii_and_finished_runs_are_left_alone": 0,
    },
    "experiments/test_methods.py": {
        "test_every_method_fits_into_the_training_loop": 4,
    },
    "experiments/test_recipes.py": {
        "test_words_after_the_recipe_override_it": 0,
    },
    "experiments/test_records.py": {
        "test_events_hold_the_numbers_of_the_metrics_once_after_a_resumption_too": 0,
    },
    "experiments/test_series.py": {
        "test_a_character_is_predicted_from_those_before_it": 0,
        "test_a_forecast_that_diverged_is_said_to_be_not_finite": 0,
        "test_cifar10n_is_in_the_order_of_tfds": 0,
    },
    "experiments/test_side_by_side.py": {
        "test_a_grid_trains_side_by_side_and_goes_on": 0,
        "test_each_run_has_the_numbers_of_a_run_by_itself": 1,
    },
    "experiments/test_stream.py": {
        "test_imagenet_is_streamed_and_trained_on": 0,
    },
    "experiments/test_train.py": {
        "test_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one": 0,
    },
    "frameworks/test_computing_nodes.py": {
        "test_a_node_that_computes_an_array_is_no_variable": 3,
    },
    "frameworks/test_flax.py": {
        "test_statistics_and_counts_of_the_live_model_are_those_of_one_forward_pass": 2,
    },
    "frameworks/test_linen.py": {
        "test_batch_statistics_are_those_of_a_forward_pass_at_the_start_of_the_method": 2,
    },
    "fuzzing/test_fuzz.py": {
        "test_any_call_gives_the_documented_result_or_the_documented_error": 0,
    },
    "fuzzing/test_fuzz_convolutions.py": {
        "test_random_convolutions_have_the_same_gradients": 0,
    },
    "fuzzing/test_fuzz_places.py": {
        "test_masks_nested_among_other_ascents_leave_out_what_they_leave_out": 0,
        "test_nodes_that_compute_arrays_change_no_result": 0,
    },
    "guarantees/test_calls.py": {
        "test_an_oracle_by_hand_gives_the_same_step_and_one_of_another_method_is_refused": 2,
        "test_host_decisions_follow_the_program": 1,
        "test_padding_is_harmless": 2,
    },
    "guarantees/test_checkpoints.py": {
        "test_flax_and_orbax_restore_and_the_run_goes_on_bit_for_bit": 2,
        "test_states_of_earlier_releases_load_and_go_on": 1,
    },
    "guarantees/test_family.py": {
        "test_in_loops_and_under_vmap_the_same_happens": 3,
        "test_structures_shapes_and_dtypes_are_kept_and_odd_leaves_pass_through": 8,
    },
    "guarantees/test_family_cost.py": {
        "test_flops_are_those_of_the_documented_gradients": 4,
        "test_methods_of_one_gradient_cost_what_sgd_costs": 4,
    },
    "guarantees/test_family_places.py": {
        "test_a_sharded_batch_gives_the_trajectory_of_one_device": 3,
        "test_one_slice_and_accumulated_parts_are_the_method_itself": 3,
    },
    "guarantees/test_held_losses.py": {
        "test_further_arguments_reach_every_device": 0,
        "test_further_arguments_reach_every_pass": 3,
        "test_what_is_assigned_between_the_two_calls_does_not_reach_the_second": 3,
    },
    "guarantees/test_odd_leaves.py": {
        "test_a_batch_of_any_width_may_have_padding": 4,
        "test_they_pass_through_every_method": 0,
    },
    "guarantees/test_pieces.py": {
        "test_the_count_of_slices_is_their_plain_mean_whatever_they_weigh": 0,
    },
    "guarantees/test_pieces_refused.py": {
        "test_a_start_that_compares_losses_refuses_a_selection_of_other_ones": 0,
    },
    "guarantees/test_short_step.py": {
        "test_it_is_the_two_calls_bit_for_bit": 5,
        "test_it_is_the_two_calls_wherever_the_method_stands": 1,
    },
    "guarantees/test_state.py": {
        "test_method_survives_copy_pickle_replace_and_tree_map": 2,
        "test_scan_cond_and_one_trace_for_two_calls": 2,
        "test_vmap_over_seeds_and_trajectories": 2,
    },
    "guarantees/test_training_step.py": {
        "test_the_derivative_by_an_example_s_weight_is_right_where_the_weight_is_not_zero": 0,
    },
    "methods/test_eigen_and_focal_sam.py": {
        "test_the_vector_stays_a_unit_vector": 1,
        "test_the_vector_stays_a_unit_vector_over_devices": 0,
    },
    "methods/test_limits.py": {
        "test_tsam_without_noise_is_sam": 1,
    },
    "methods/test_per_microbatch.py": {
        "test_per_microbatch_is_a_loop_over_slices": 2,
    },
    "migration/test_from_optax.py": {
        "test_new_call_trains_as_the_old_one": 4,
    },
    "migration/test_from_pytorch.py": {
        "test_new_call_trains_as_the_recorded_one": 5,
    },
    "per_example/test_ghost_norms_of_odd_inputs.py": {
        "test_a_table_that_is_read_by_bytes": 0,
        "test_derivatives_of_the_norms_are_finite_where_a_layer_has_no_gradient": 0,
    },
    "per_example/test_per_example.py": {
        "test_they_are_those_of_batches_of_one": 2,
    },
    "sharpness/test_curvature.py": {
        "test_in_double_precision_eigenvalues_are_exact_to_it": 0,
        "test_products_are_those_of_the_written_out_matrices": 0,
    },
    "sharpness/test_rises.py": {
        "test_gradient_noise_is_the_spread_of_the_examples_gradients": 0,
    },
    "sharpness/test_sharded.py": {
        "test_measurements_keep_what_is_split_and_give_the_same_numbers": 0,
    },
    "traps/test_traps_of_state.py": {
        "test_passes_over_a_copied_nnx_model_leave_the_live_one_alone": 2,
    },
}
