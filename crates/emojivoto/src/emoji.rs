//! The emoji that one can vote for, in the order in which the page shows them.

/// Shortcodes and what they look like.
pub(crate) const ALL: [(&str, &str); 100] = [
    (":joy:", "😂"),
    (":sunglasses:", "😎"),
    (":doughnut:", "🍩"),
    (":stuck_out_tongue_winking_eye:", "😜"),
    (":money_mouth_face:", "🤑"),
    (":flushed:", "😳"),
    (":mask:", "😷"),
    (":nerd_face:", "🤓"),
    (":ghost:", "👻"),
    (":skull_and_crossbones:", "☠️"),
    (":heart_eyes_cat:", "😻"),
    (":hear_no_evil:", "🙉"),
    (":see_no_evil:", "🙈"),
    (":speak_no_evil:", "🙊"),
    (":boy:", "👦"),
    (":girl:", "👧"),
    (":man:", "👨"),
    (":woman:", "👩"),
    (":older_man:", "👴"),
    (":policeman:", "👮‍♂️"),
    (":guardsman:", "💂‍♂️"),
    (":construction_worker_man:", "👷‍♂️"),
    (":prince:", "🤴"),
    (":princess:", "👸"),
    (":man_in_tuxedo:", "🤵"),
    (":bride_with_veil:", "👰"),
    (":mrs_claus:", "🤶"),
    (":santa:", "🎅"),
    (":turkey:", "🦃"),
    (":rabbit:", "🐰"),
    (":no_good_woman:", "🙅‍♀️"),
    (":ok_woman:", "🙆‍♀️"),
    (":raising_hand_woman:", "🙋‍♀️"),
    (":bowing_man:", "🙇‍♂️"),
    (":man_facepalming:", "🤦‍♂️"),
    (":woman_shrugging:", "🤷‍♀️"),
    (":massage_woman:", "💆‍♀️"),
    (":walking_man:", "🚶‍♂️"),
    (":running_man:", "🏃‍♂️"),
    (":dancer:", "💃"),
    (":man_dancing:", "🕺"),
    (":dancing_women:", "👯‍♀️"),
    (":rainbow:", "🌈"),
    (":skier:", "⛷️"),
    (":golfing_man:", "🏌️‍♂️"),
    (":surfing_man:", "🏄‍♂️"),
    (":basketball_man:", "⛹️‍♂️"),
    (":biking_man:", "🚴‍♂️"),
    (":point_up_2:", "👆"),
    (":vulcan_salute:", "🖖"),
    (":metal:", "🤘"),
    (":call_me_hand:", "🤙"),
    (":thumbsup:", "👍"),
    (":wave:", "👋"),
    (":clap:", "👏"),
    (":raised_hands:", "🙌"),
    (":pray:", "🙏"),
    (":dog:", "🐶"),
    (":cat2:", "🐈"),
    (":pig:", "🐷"),
    (":hatching_chick:", "🐣"),
    (":snail:", "🐌"),
    (":bacon:", "🥓"),
    (":pizza:", "🍕"),
    (":taco:", "🌮"),
    (":burrito:", "🌯"),
    (":ramen:", "🍜"),
    (":champagne:", "🍾"),
    (":tropical_drink:", "🍹"),
    (":beer:", "🍺"),
    (":tumbler_glass:", "🥃"),
    (":world_map:", "🗺️"),
    (":beach_umbrella:", "🏖️"),
    (":mountain_snow:", "🏔️"),
    (":camping:", "🏕️"),
    (":steam_locomotive:", "🚂"),
    (":flight_departure:", "🛫"),
    (":rocket:", "🚀"),
    (":star2:", "🌟"),
    (":sun_behind_small_cloud:", "🌤️"),
    (":cloud_with_rain:", "🌧️"),
    (":fire:", "🔥"),
    (":jack_o_lantern:", "🎃"),
    (":balloon:", "🎈"),
    (":tada:", "🎉"),
    (":trophy:", "🏆"),
    (":iphone:", "📱"),
    (":pager:", "📟"),
    (":fax:", "📠"),
    (":bulb:", "💡"),
    (":money_with_wings:", "💸"),
    (":crystal_ball:", "🔮"),
    (":underage:", "🔞"),
    (":interrobang:", "⁉️"),
    (":100:", "💯"),
    (":checkered_flag:", "🏁"),
    (":crossed_swords:", "⚔️"),
    (":floppy_disk:", "💾"),
    (":poop:", "💩"),
    (":relaxed:", "☺️"),
];

/// How many of [`ALL`] are on offer. `:relaxed:` lost its place to `:doughnut:` but still has its RPC.
pub(crate) const LISTED: usize = ALL.len() - 1;

/// The gRPC method that votes for a shortcode: `:point_up_2:` is `VotePointUp2`.
pub(crate) fn method(shortcode: &str) -> String {
    let mut method = String::from("Vote");
    for word in shortcode.trim_matches(':').split('_') {
        let mut letters = word.chars();
        method.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        method.push_str(letters.as_str());
    }
    method
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_method_is_the_shortcode_in_camel_case() {
        for (shortcode, method) in [
            (":100:", "Vote100"),
            (":point_up_2:", "VotePointUp2"),
            (":stuck_out_tongue_winking_eye:", "VoteStuckOutTongueWinkingEye"),
        ] {
            assert_eq!(super::method(shortcode), method);
        }
    }
}
