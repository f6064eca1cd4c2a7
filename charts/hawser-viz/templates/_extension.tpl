{{/* What the extensions' charts have in common. Each has the same copy of this file, and a test compares them: some GitOps
     tools leave out symbolic links, and a library chart would have to be fetched before a chart can be used from here. */}}

{{/* The version of everything that has none of its own. */}}
{{- define "hawser-extension.version" -}}
{{ .Values.linkerdVersion | default .Chart.AppVersion }}
{{- end }}

{{- define "hawser-extension.name" -}}
{{ trimPrefix "hawser-" .Chart.Name }}
{{- end }}

{{/* Takes root, name, and labels, clusterWide, namespace where there is something to say. */}}
{{- define "hawser-extension.metadata" -}}
metadata:
  name: {{ .name }}
  {{- if not .clusterWide }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  {{- end }}
  labels:
    linkerd.io/extension: {{ include "hawser-extension.name" .root }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    linkerd.io/created-by: linkerd/helm {{ include "hawser-extension.version" .root }}
    {{- with .annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Takes what metadata takes, kind (ClusterRole or Role) and rules. */}}
{{- define "hawser-extension.role" -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}
{{ include "hawser-extension.metadata" (merge (dict "clusterWide" (eq .kind "ClusterRole")) .) }}
rules:
{{ toYaml .rules }}
{{- end }}

{{/* Takes what metadata takes, kind (ClusterRole or Role), account, and role if its name is another. */}}
{{- define "hawser-extension.binding" -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
{{ include "hawser-extension.metadata" (merge (dict "clusterWide" (eq .kind "ClusterRole")) .) }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .role | default .name }}
subjects:
- kind: ServiceAccount
  name: {{ .account }}
  namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* Takes what metadata takes. */}}
{{- define "hawser-extension.account" -}}
---
apiVersion: v1
kind: ServiceAccount
{{ include "hawser-extension.metadata" . }}
{{- end }}

{{/* Takes what metadata takes, kind, version and spec. */}}
{{- define "hawser-extension.policy" -}}
---
apiVersion: policy.linkerd.io/{{ .version }}
kind: {{ .kind }}
{{ include "hawser-extension.metadata" . }}
spec:
  {{- toYaml .spec | nindent 2 }}
{{- end }}

{{/* Takes uid, gid. */}}
{{- define "hawser-extension.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ .uid | int64 }}
runAsGroup: {{ .gid | int64 }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Replicas on different nodes, in different zones where there are any. Takes selector. */}}
{{- define "hawser-extension.affinity" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      labelSelector:
        matchLabels: {{ toJson .selector }}
      topologyKey: topology.kubernetes.io/zone
  requiredDuringSchedulingIgnoredDuringExecution:
  - labelSelector:
      matchLabels: {{ toJson .selector }}
    topologyKey: kubernetes.io/hostname
{{- end }}

{{/* Lets one replica be evicted at a time. Takes what metadata takes, and selector. */}}
{{- define "hawser-extension.budget" -}}
{{- if .root.Values.enablePodAntiAffinity }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
{{ include "hawser-extension.metadata" . }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{ toJson .selector }}
{{- end }}
{{- end }}

{{/* A controller, as a meshed Deployment. Takes what metadata takes, and selector, container, image, pullPolicy, args,
     port, portName, replicas, and account, uid, gid, ports, podAnnotations where they differ. */}}
{{- define "hawser-extension.workload" -}}
---
apiVersion: apps/v1
kind: Deployment
{{ include "hawser-extension.metadata" . }}
spec:
  replicas: {{ .replicas | int }}
  revisionHistoryLimit: 10
  {{- if .root.Values.enablePodAntiAffinity }}
  strategy:
    rollingUpdate:
      maxUnavailable: 1
  {{- end }}
  selector:
    matchLabels:
      {{- toYaml .selector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- toYaml (merge (dict "linkerd.io/extension" (include "hawser-extension.name" .root)) .selector) | nindent 8 }}
      annotations:
        linkerd.io/created-by: linkerd/helm {{ include "hawser-extension.version" .root }}
        linkerd.io/inject: enabled
        cluster-autoscaler.kubernetes.io/safe-to-evict: "true"
        config.alpha.linkerd.io/proxy-wait-before-exit-seconds: "0"
        {{- with .podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ .account | default .name }}
      automountServiceAccountToken: false
      {{- if .root.Values.enablePodAntiAffinity }}
      affinity:
        {{- include "hawser-extension.affinity" . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
      {{- toYaml . | nindent 6 }}
      {{- end }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
      containers:
      - name: {{ .container }}
        image: {{ .image }}
        imagePullPolicy: {{ .pullPolicy }}
        args:
        {{- toYaml .args | nindent 8 }}
        env:
        - { name: HOSTNAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
        ports:
        - name: {{ .portName }}
          containerPort: {{ .port }}
        {{- with .ports }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        livenessProbe:
          httpGet: { path: /live, port: {{ .portName }} }
          initialDelaySeconds: 10
          failureThreshold: 7
        readinessProbe:
          httpGet: { path: /ready, port: {{ .portName }} }
          initialDelaySeconds: 0
          failureThreshold: 7
        securityContext:
          {{- include "hawser-extension.restricted" (dict "uid" (.uid | default 2103) "gid" (.gid | default 2103)) | nindent 10 }}
        volumeMounts:
        - name: kube-api-access
          mountPath: /var/run/secrets/kubernetes.io/serviceaccount
          readOnly: true
      volumes:
      - name: kube-api-access
        projected:
          defaultMode: 420
          sources:
          - serviceAccountToken: { expirationSeconds: 3607, path: token }
          - configMap:
              name: kube-root-ca.crt
              items:
              - { key: ca.crt, path: ca.crt }
          - downwardAPI:
              items:
              - path: namespace
                fieldRef: { apiVersion: v1, fieldPath: metadata.namespace }
{{- include "hawser-extension.budget" . }}
{{- end }}
