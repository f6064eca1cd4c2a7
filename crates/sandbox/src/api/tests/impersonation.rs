//! `kubectl --as`: who may act as whom, and with which rights.

use super::*;

/// Sends a request as one user with impersonation headers.
async fn send_with(
    cluster: &Arc<Cluster>,
    author: Identity,
    uri: &str,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let response = cluster.answer(parts, body::full(""), author).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn an_impersonated_user_has_their_own_rights_and_no_others() {
    let cluster = cluster();
    let jane = [("impersonate-user", "jane")];
    let (code, denied) = send_with(&cluster, Identity::admin(), MAPS, &jane).await;
    assert_eq!(code, 403);
    assert_eq!(
        denied["message"],
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let masters = [
        ("impersonate-user", "jane"),
        ("impersonate-group", "system:masters"),
    ];
    assert_eq!(
        send_with(&cluster, Identity::admin(), MAPS, &masters).await.0,
        200
    );
    let nobody = [("impersonate-group", "system:masters")];
    assert_eq!(send_with(&cluster, Identity::admin(), MAPS, &nobody).await.0, 400);
}

#[tokio::test]
async fn each_part_of_another_identity_needs_its_own_permission() {
    let cluster = cluster();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "actor" },
        "rules": [
            { "apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["jane"] },
            { "apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["readers"] },
            { "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/reason"], "verbs": ["impersonate"] },
        ],
    });
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(
        send(&cluster, "POST", &format!("{rbac}/clusterroles"), JSON, role)
            .await
            .0,
        201
    );
    for (name, role, kind, subject) in [
        ("actor", "actor", "User", "actor"),
        ("readers", "view", "Group", "readers"),
    ] {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject }],
        });
        assert_eq!(
            send(
                &cluster,
                "POST",
                &format!("{rbac}/clusterrolebindings"),
                JSON,
                binding
            )
            .await
            .0,
            201
        );
    }
    const USER: &str = "impersonate-user";
    const GROUP: &str = "impersonate-group";
    for (headers, expected, message) in [
        (&[(USER, "jane"), (GROUP, "readers")][..], 200, ""),
        (
            &[
                (USER, "jane"),
                (GROUP, "readers"),
                ("impersonate-extra-reason", "x"),
            ],
            200,
            "",
        ),
        (
            &[(USER, "joe")],
            403,
            "users \"joe\" is forbidden: User \"actor\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            &[(USER, "jane"), (GROUP, "system:masters")],
            403,
            "groups \"system:masters\" is forbidden: User \"actor\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope",
        ),
        (
            &[(USER, "system:serviceaccount:default:web")],
            403,
            "serviceaccounts \"web\" is forbidden: User \"actor\" cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"default\"",
        ),
        (
            &[(USER, "jane"), ("impersonate-uid", "1")],
            403,
            "uids.authentication.k8s.io \"1\" is forbidden: User \"actor\" cannot impersonate resource \"uids\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
    ] {
        let (code, answer) = send_with(&cluster, Identity::new("actor", &[]), MAPS, headers).await;
        assert_eq!(
            (code, answer["message"].as_str().unwrap_or_default()),
            (expected, message),
            "{headers:?}"
        );
    }
}
