{{- define "ff.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "ff.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "ff.labels" -}}
{{ include "ff.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "ff.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "ff.claim" -}}
{{ .Values.modelRepository.existingClaim | default (printf "%s-models" (include "ff.name" .)) }}
{{- end }}

{{/* host:port of the pool that a door asks: dict root, pool */}}
{{- define "ff.tritonUrl" -}}
{{- if .root.Values.triton.url }}{{ .root.Values.triton.url }}
{{- else }}
{{- if not (index .root.Values.triton .pool).enabled }}
{{- fail (printf "tritonPool is %s, but triton.%s.enabled is false" .pool .pool) }}
{{- end }}
{{- printf "%s-triton-%s:8001" (include "ff.name" .root) .pool }}
{{- end }}
{{- end }}

{{/* Port of a URL; without one, that of HTTPS or HTTP. */}}
{{- define "ff.portOf" -}}
{{- $port := regexFind ":[0-9]+(/|$)" . | trimPrefix ":" | trimSuffix "/" }}
{{- $port | default (ternary "443" "80" (hasPrefix "https://" .)) }}
{{- end }}

{{/* Ports of the brokers, for a network policy: those that we are told first, and further ones. */}}
{{- define "ff.kafkaPorts" -}}
{{- $ports := list }}
{{- range splitList "," .Values.kafka.bootstrapServers }}
{{- $ports = append $ports (regexFind "[0-9]+$" (trim .) | default "9092" | int) }}
{{- end }}
{{- range concat $ports .Values.networkPolicy.kafkaPorts | uniq }}
- {port: {{ . }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* Who runs: nobody special, on a root file system that nobody can write to. */}}
{{- define "ff.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Who the pod is to the cluster, and through that to AWS. */}}
{{- define "ff.identity" -}}
{{- with .Values.aws.serviceAccountName }}serviceAccountName: {{ . }}
{{ end -}}
automountServiceAccountToken: false
{{- end }}

{{- define "ff.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Who Kafka is, and who we are to it: dict root */}}
{{- define "ff.kafkaEnv" -}}
- {name: FLAGGER_KAFKA_BOOTSTRAP_SERVERS, value: {{ required "kafka.bootstrapServers is needed" .root.Values.kafka.bootstrapServers | quote }}}
- {name: FLAGGER_KAFKA_SECURITY_PROTOCOL, value: {{ .root.Values.kafka.securityProtocol | quote }}}
{{- with .root.Values.kafka }}
{{- if eq .securityProtocol "sasl_ssl" }}
- {name: FLAGGER_KAFKA_SASL_MECHANISM, value: {{ .saslMechanism | quote }}}
{{- if eq .saslMechanism "AWS_MSK_IAM" }}
- {name: FLAGGER_KAFKA_AWS_REGION, value: {{ required "aws.region is needed for AWS_MSK_IAM" $.root.Values.aws.region | quote }}}
{{- $_ := required "aws.serviceAccountName is needed for AWS_MSK_IAM" $.root.Values.aws.serviceAccountName }}
{{- else }}
- {name: FLAGGER_KAFKA_USERNAME, value: {{ required "kafka.username is needed for sasl_ssl" .username | quote }}}
- {name: FLAGGER_KAFKA_PASSWORD_FILE, value: /etc/flagger/kafka/{{ required "kafka.secret.passwordKey is needed for sasl_ssl" .secret.passwordKey }}}
{{- end }}
{{- end }}
{{- if ne .securityProtocol "plaintext" }}
{{- if .secret.caKey }}
- {name: FLAGGER_KAFKA_TLS_CA, value: /etc/flagger/kafka/{{ .secret.caKey }}}
{{- end }}
{{- if .secret.certificateKey }}
- {name: FLAGGER_KAFKA_TLS_CERTIFICATE, value: /etc/flagger/kafka/{{ .secret.certificateKey }}}
- {name: FLAGGER_KAFKA_TLS_KEY, value: /etc/flagger/kafka/{{ required "kafka.secret.keyKey is needed with certificateKey" .secret.keyKey }}}
{{- end }}
{{- end }}
{{- end }}
{{- with .root.Values.aws.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* Values of `settings`: dict root */}}
{{- define "ff.settingsEnv" -}}
{{- range $name, $value := .root.Values.settings }}
{{- if or (hasPrefix "kafka_" $name) (has $name (list "triton_url" "valkey_url" "model_repository" "partitions" "instance" "gateway_keys_file" "case_store_url" "desk_users_file" "alerts_file")) }}
{{- fail (printf "settings.%s: the chart sets it from another value, see values.yaml" $name) }}
{{- end }}
{{- if or (hasPrefix "gateway_tls_" $name) (hasPrefix "desk_tls_" $name) }}
{{- fail (printf "settings.%s: probes and policies of the chart speak HTTP; end TLS at an ingress or a mesh" $name) }}
{{- end }}
- {name: FLAGGER_{{ upper $name }}, value: {{ include "ff.text" $value | quote }}}
{{- end }}
{{- end }}

{{/* The environment of what scores: dict root, pool */}}
{{- define "ff.env" -}}
{{ include "ff.kafkaEnv" . }}
- {name: FLAGGER_TRITON_URL, value: {{ include "ff.tritonUrl" . | quote }}}
- {name: FLAGGER_VALKEY_URL_FILE, value: /etc/flagger/valkey/{{ .root.Values.valkey.secret.key }}}
- {name: FLAGGER_MODEL_REPOSITORY, value: /models}
- {name: FLAGGER_PARTITIONS, value: {{ .root.Values.streamer.partitions | quote }}}
{{- include "ff.settingsEnv" . }}
{{- end }}

{{/* The environment of the desk: dict root */}}
{{- define "ff.deskEnv" -}}
{{ include "ff.kafkaEnv" . }}
- {name: FLAGGER_CASE_STORE_URL_FILE, value: /etc/flagger/cases/{{ .root.Values.desk.caseStore.secret.key }}}
- {name: FLAGGER_DESK_USERS_FILE, value: /etc/flagger/desk/desk-users.json}
- {name: FLAGGER_VALKEY_URL_FILE, value: /etc/flagger/valkey/{{ .root.Values.valkey.secret.key }}}
{{- include "ff.settingsEnv" . }}
{{- end }}

{{/* All that a pod of ours can write to: the root file system is read-only. */}}
{{- define "ff.writableMounts" -}}
- {name: kernels, mountPath: /var/cache/flagger}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "ff.writableVolumes" -}}
- name: kernels
  emptyDir: {sizeLimit: 256Mi}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{- define "ff.mounts" -}}
- {name: models, mountPath: /models, readOnly: true{{ with .Values.modelRepository.subPath }}, subPath: {{ . | quote }}{{ end }}}
{{- include "ff.writableMounts" . | nindent 0 }}
- {name: valkey, mountPath: /etc/flagger/valkey, readOnly: true}
{{- if .Values.kafka.secret.name }}
- {name: kafka, mountPath: /etc/flagger/kafka, readOnly: true}
{{- end }}
{{- if .Values.files.configMap }}
- {name: files, mountPath: /etc/flagger/files, readOnly: true}
{{- end }}
{{- end }}

{{- define "ff.volumes" -}}
- name: models
  persistentVolumeClaim: {claimName: {{ include "ff.claim" . }}, readOnly: true}
{{- include "ff.writableVolumes" . | nindent 0 }}
- name: valkey
  secret: {secretName: {{ required "valkey.secret.name is needed" .Values.valkey.secret.name }}}
{{- with .Values.kafka.secret.name }}
- name: kafka
  secret: {secretName: {{ . }}}
{{- end }}
{{- with .Values.files.configMap }}
- name: files
  configMap: {name: {{ . }}}
{{- end }}
{{- end }}

{{/* What a pod of desk or alerts has in common with the others: dict root, component */}}
{{- define "ff.podHead" -}}
{{ include "ff.identity" .root }}
# Kubernetes' own FLAGGER_..._SERVICE_HOST would be refused as unknown settings.
enableServiceLinks: false
terminationGracePeriodSeconds: 60
securityContext:
  {{- include "ff.podSecurity" 10001 | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
initContainers:
  {{- include "ff.initContainers" .root | nindent 2 }}
{{- end }}

{{/* Image and rights of such a container: dict root */}}
{{- define "ff.container" -}}
image: {{ include "ff.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "ff.containerSecurity" . | nindent 2 }}
{{- end }}

{{/* Where such a pod runs: dict root, component, values */}}
{{- define "ff.placement" -}}
topologySpreadConstraints:
  {{- include "ff.spread" . | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Probes of a consumer with --metrics-port */}}
{{- define "ff.consumerProbes" -}}
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* The image's compiled kernels, copied where they can be added to on another processor. */}}
{{- define "ff.initContainers" -}}
- name: kernels
  image: {{ include "ff.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # Not -a: the folder is not ours, so its times and mode cannot be set.
  command: [cp, -r, /var/cache/flagger/., /kernels/]
  securityContext:
    {{- include "ff.containerSecurity" . | nindent 4 }}
  resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 64Mi}}
  volumeMounts: [{name: kernels, mountPath: /kernels}]
{{- end }}

{{/* Replicas on different machines where there are some: dict root, component */}}
{{- define "ff.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "ff.selector" . | nindent 6 }}
{{- end }}

{{/* A value as text; Helm reads numbers as floating point, and 2000000 would become 2e+06. */}}
{{- define "ff.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}
